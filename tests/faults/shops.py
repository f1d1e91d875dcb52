"""A small shop of files, whatever bytes they hold: a log in ``log/`` and, where there is one, a catalogue."""

import yaml

AS_OF = "2020-02-01T00:00:00+00:00"
AT = "2020-01-05T10:00:00Z"
HEAD = b"user,item,at,n\n"
ITEMS = b"sku,name,price\ni1,Tea,1\ni2,Jug,2.50\n"


def row(user, item="i1", at=AT, n="1"):
    """One line of the log."""
    return f"{user},{item},{at},{n}\n".encode()


A, B, C = map(row, "abc")
LOG = HEAD + A + B + C


def write_shop(folder, files, events=None, **keys):
    """Write the files (bytes, or a function that is told the path) and the shop file, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
    columns = {"user_id": "user", "item_id": "item", "timestamp": "at", "value": "n"}
    source = {"format": "tabular", "events": {"path": "log", "columns": columns, **(events or {})}}
    if "items.csv" in files:
        source["items"] = {"path": "items.csv", "columns": {"item_id": "sku", "title": "name", "price": "price"}}
    described = {"name": "corner", "time_zone": "UTC", "source": source, **keys}
    (folder / "shop.yaml").write_text(yaml.safe_dump(described))
    return folder / "shop.yaml"
