"""The operator's web page: what `status`, `show` and `report` say, and buttons for `retry` and `skip`.

It is a process of its own on 127.0.0.1, never a part of the listener's app.
"""
