"""What MONAI Label's extension for 3D Slicer does, by its own client; run by an interpreter that has it.

Takes one argument, JSON: client (the folder of client.py), url, folder (for its files), image and label (files), and
points. Prints JSON: what every step came to.
"""

import json
import sys
import time
from pathlib import Path

task = json.loads(sys.argv[1])
sys.path.insert(0, task["client"])

from client import MONAILabelClient, MONAILabelClientException  # noqa: E402


def refused(call, *arguments):
    """The message of a call that must fail."""
    try:
        call(*arguments)
    except MONAILabelClientException as error:
        return error.msg
    raise AssertionError(f"{call.__name__} was not refused")


def client():
    """The extension makes a new one for every call."""
    found = MONAILabelClient(task["url"], task["folder"], "ana")
    if task.get("password"):
        assert found.auth_enabled()
        found.update_auth(found.auth_token("ana", task["password"]))
        assert found.auth_valid_token()
    return found


def infer(model, image, params, **more):
    params = {**params, "result_extension": ".nrrd", "result_dtype": "uint8"}
    file, said = client().infer(model, image, params, **more)
    return {"file": file, "said": said}


one = {"label": "liver", "foreground": task["foreground"], "background": task["background"]}
steps = {"auth": client().auth_enabled(), "info": client().info()}
session = client().create_session(task["image"])
steps["session"] = session
sid = session["session_id"]
steps["session again"] = client().get_session(sid)
steps["by session"] = infer("balls", "whatever", one, session_id=sid)
steps["by id"] = infer("balls", "ct", one)
steps["one click fewer"] = infer("balls", "ct", {**one, "background": []})
steps["by file"] = infer("balls", "", one, file=task["image"])
steps["labels"] = infer("balls-labels", "ct", {"liver": task["foreground"], "spleen": [], "background": []})
steps["upload"] = client().upload_image(task["image"], "2: fresh CT")
steps["uploaded"] = infer("balls", "2: fresh CT", one)
steps["save"] = client().save_label("2: fresh CT", task["label"], params={"label_info": [{"name": "liver", "idx": 1}]})
client().save_label("ct", task["label"], "original", {"label_info": [{"name": "liver", "idx": 1}]})
steps["datastore"] = client().datastore()
steps["downloaded"] = client().download_label("2: fresh CT", "final")
steps["next"] = {name: client().next_sample(name, {}) for name in ("first", "random", "uncertainty")}
steps["scribbles"] = infer(
    "balls-scribbles",
    "ct",
    {"label_info": task["label_info"], "selected_label_name": "liver", "roi": []},
    label_in=task["scribbles"],
)
steps["idle"] = [client().train_status(check_if_running=True), refused(client().train_status)]
steps["train"] = client().train_start("adapt", {"max_steps": 100000})
steps["busy"] = refused(client().train_start, "adapt", {})
steps["running"] = [client().train_status(check_if_running=True), client().train_status()]
time.sleep(task["training"])
steps["stopped"] = client().train_stop()
steps["after"] = [client().train_status(check_if_running=True), client().train_status()]
steps["no stop"] = refused(client().train_stop)
steps["removed"] = client().remove_session(sid)
steps["gone"] = refused(client().get_session, sid)
steps["no model"] = refused(client().infer, "none", "ct", {})
steps["outside"] = refused(client().infer, "balls", "ct", {"foreground": [[1, 2, 900]]})
Path(task["folder"], "steps.json").write_text(json.dumps(steps))
