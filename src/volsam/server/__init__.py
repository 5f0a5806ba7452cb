"""HTTP: sessions of many people over one model, the viewer's page, and the wire dialects of other tools.

    Core        what everything below speaks to: leases, saved sessions, models, the device    core.py
    api         volsam's own contract, docs/reference/http.md                                  api/
    dialects    thin translations of other tools' protocols                                    dialects/
    app         the parts put together, `create_app`                                           app.py

Nothing of this is imported by `import volsam` or `volsam --help`.
"""
