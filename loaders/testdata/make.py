"""Writes the golden files of loaders/tfrecord, webdataset and parquet, with the
tools whose files they are, and beside each what these tools say is in it.

    pip install tensorflow-cpu webdataset pyarrow
    python loaders/testdata/make.py
"""

import hashlib
import io
import json
import pathlib
import random
import sys
import tarfile

LOADERS = pathlib.Path(__file__).resolve().parent.parent


def target(package: str, name: str) -> pathlib.Path:
    path = LOADERS / package / "testdata" / name
    path.parent.mkdir(exist_ok=True)
    return path


def truth(path: pathlib.Path, what: object) -> None:
    path.with_suffix(path.suffix + ".json").write_text(json.dumps(what, indent=1) + "\n")


def tfrecord() -> None:
    import tensorflow as tf

    rng = random.Random(1)
    path = target("tfrecord", "some.tfrecord")
    records = [rng.randbytes(n) for n in (0, 1, 7, 100, 4096, 5000, 3)]
    with tf.io.TFRecordWriter(str(path)) as w:
        for r in records:
            w.write(r)
    back = [r.numpy() for r in tf.data.TFRecordDataset(str(path))]
    assert back == records
    truth(path, [{"length": len(r), "sha256": hashlib.sha256(r).hexdigest()} for r in back])


def webdataset() -> None:
    import webdataset as wds

    rng = random.Random(2)
    path = target("webdataset", "some.tar")
    with wds.TarWriter(str(path), encoder=False) as w:
        for i in range(20):
            key = f"dir{i % 3}/sample{i:04d}" if i != 7 else "long/" + "x" * 120 + "/sample"
            w.write({"__key__": key, "jpg": rng.randbytes(rng.randrange(3000)), "cls": str(i).encode(),
                     "seg.png": rng.randbytes(i * 17)})
    samples = []
    for s in wds.WebDataset(str(path), shardshuffle=False, empty_check=False):
        samples.append({"key": s["__key__"], "members": [k for k in s if not k.startswith("__")]})
    with tarfile.open(path) as t:
        members = t.getmembers()
    at = 0
    for s in samples:
        ends = []
        for _ in s["members"]:
            m = members.pop(0)
            ends.append(m.offset_data + (m.size + 511) // 512 * 512)
        s["off"], s["len"] = at, ends[-1] - at
        at = ends[-1]
    truth(path, samples)


def parquet() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(3)
    table = pa.table({
        "id": pa.array(range(1000)),
        "name": pa.array([f"n{i % 5}" for i in range(1000)]),
        "image": pa.array([rng.randbytes(20) for _ in range(1000)]),
        "box": pa.array([{"x": [i, i + 1], "y": None if i % 3 else 1.5} for i in range(1000)]),
        "yes": pa.array([i % 2 == 0 for i in range(1000)]),
        "when": pa.array([i * 1000 for i in range(1000)], pa.timestamp("ms")),
    }, metadata={"about": "golden"})
    for name, options in {
        "snappy.parquet": {"compression": "snappy", "row_group_size": 300},
        "plain.parquet": {"compression": "none", "use_dictionary": False, "row_group_size": 170,
                          "write_page_index": True},
        "v2.parquet": {"compression": "zstd", "data_page_version": "2.0", "version": "2.6"},
        "empty.parquet": {},
    }.items():
        path = target("parquet", name)
        pq.write_table(table.slice(0, 0) if name == "empty.parquet" else table, path, **options)
        m = pq.ParquetFile(path).metadata
        groups = []
        for g in range(m.num_row_groups):
            r = m.row_group(g)
            columns = [r.column(c) for c in range(r.num_columns)]
            starts = [c.dictionary_page_offset if c.has_dictionary_page else c.data_page_offset for c in columns]
            ends = [s + c.total_compressed_size for s, c in zip(starts, columns)]
            groups.append({"rows": r.num_rows, "off": min(starts), "len": max(ends) - min(starts)})
        truth(path, {"rows": m.num_rows, "footer": m.serialized_size, "groups": groups})


for part in sys.argv[1:] or ["tfrecord", "webdataset", "parquet"]:
    globals()[part]()
