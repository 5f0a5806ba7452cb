"""Signing in with a name and a password, the password being the server's key; there only if it has one."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import APIRouter, Form
from pydantic import SecretStr

from volsam.server.problems import Problem


def router(key: SecretStr) -> APIRouter:
    """`/auth/...`; a client takes a 404 for "no key needed"."""
    routes = APIRouter(prefix="/auth")

    @routes.get("/")
    def auth() -> dict[str, bool | str]:
        return {"enabled": True, "client_id": "volsam", "realm": "volsam"}

    @routes.post("/token")
    def token(password: Annotated[str, Form()], username: Annotated[str, Form()] = "") -> dict[str, str]:
        secret = key.get_secret_value()
        if not hmac.compare_digest(password.encode(), secret.encode()):
            raise Problem(401, "this is not the key of the server: give it as the password, with any user name")
        return {"access_token": secret, "token_type": "bearer"}

    @routes.get("/token/valid")
    def valid() -> dict[str, str]:
        return {"username": "annotator"}

    return routes
