"""Trains on TFRecord shards over two agents, a process each, and on the directory.

    python tensorflow_digits.py

Two replicas read half of the shards each and average their gradients. Prints the
loss of each epoch, its time, and what the origin was asked for, and fails unless
both runs have the same losses to the last bit.
"""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from digits import Run, compare, pictures  # noqa: E402

import covey.testing  # noqa: E402
import covey.tf  # noqa: E402

EPOCHS, REPLICAS, SHARDS = 3, 2, 12


def write_shards(root: pathlib.Path) -> int:
    root.mkdir()
    made = pictures()
    for shard in range(SHARDS):
        with tf.io.TFRecordWriter(str(root / f"digits-{shard:02d}.tfrecord")) as out:
            for png, shown in made[shard::SHARDS]:
                features = {
                    "png": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png])),
                    "class": tf.train.Feature(int64_list=tf.train.Int64List(value=[shown])),
                }
                out.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return sum(f.stat().st_size for f in root.iterdir())


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    fields = {"png": tf.io.FixedLenFeature([], tf.string), "class": tf.io.FixedLenFeature([], tf.int64)}
    found = tf.io.parse_single_example(record, fields)
    return tf.cast(tf.io.decode_png(found["png"], 1), tf.float32) / 255, found["class"]


def replica(index: int, root: str, socket: str | None, pipe) -> None:
    """Sends the gradient of each batch and gets the average back."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    net = tf.keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(16, 3, activation="relu"), layers.Flatten(), layers.Dense(10)]
    )
    optimiser = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for epoch in range(EPOCHS):
        records = covey.tf.records(
            root, seed=1, epoch=epoch, shards=REPLICAS, index=index, announce=socket is not None, socket=socket,
            job="digits",
        )  # fmt: skip
        for images, classes in records.map(parse).batch(32, drop_remainder=True).prefetch(2):
            with tf.GradientTape() as tape:
                loss = loss_of(classes, net(images))
            gradients = tape.gradient(loss, net.trainable_variables)
            pipe.send((loss.numpy(), [g.numpy() for g in gradients]))
            average = pipe.recv()
            if average is None:  # another replica has no more
                break
            optimiser.apply_gradients(zip(average, net.trainable_variables, strict=True))
        else:
            pipe.send(None)
            while pipe.recv() is not None:
                pipe.send(None)


def run(roots: list[str], agents: list[covey.testing.Running]) -> Run:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for i in range(REPLICAS):
        here, there = context.Pipe()
        socket = agents[i].socket if agents else None
        processes.append(context.Process(target=replica, args=(i, roots[i % len(roots)], socket, there)))
        processes[-1].start()
        there.close()
        pipes.append(here)
    losses, seconds, origin, before = [], [], [], 0
    for _ in range(EPOCHS):
        begun, seen = time.monotonic(), []
        while True:
            steps = [p.recv() for p in pipes]
            if None in steps:
                for p in pipes:
                    p.send(None)
                break
            seen += [loss for loss, _ in steps]
            average = [np.mean(g, axis=0) for g in zip(*(g for _, g in steps), strict=True)]
            for p in pipes:
                p.send(average)
        now = sum(a.client.status()["origin_bytes"] for a in agents)
        losses.append(float(np.mean(seen, dtype=np.float64)))
        seconds.append(time.monotonic() - begun)
        origin.append(now - before)
        before = now
    for p in processes:
        p.join(60)
        assert p.exitcode == 0, f"a replica ended with {p.exitcode}"
    return losses, seconds, origin


if __name__ == "__main__":
    sys.exit(compare(write_shards, run))
