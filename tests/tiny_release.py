"""A release of davidsandberg/facenet in small: the files and the graph have the published ones' form."""

import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf


def a_release(folder: Path, name: str, dimension: int = 8) -> Path:
    """A folder with a frozen graph and two checkpoints, the later with the weights of the frozen graph."""
    folder.mkdir(exist_ok=True)
    start = np.random.default_rng(dimension).normal(0, 1, (3, dimension)).astype(np.float32)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        queue = tf.queue.FIFOQueue(9, [tf.float32], [(160, 160, 3)])
        images = tf.identity(queue.dequeue_many(tf.compat.v1.placeholder(tf.int32, name="batch_size")), "input")
        phase_train = tf.compat.v1.placeholder(tf.bool, name="phase_train")
        kernel = tf.compat.v1.get_variable("kernel", initializer=start, use_resource=False)
        off, on = tf.raw_ops.Switch(data=tf.reduce_max(images, [1, 2]), pred=phase_train)
        x = tf.raw_ops.Merge(inputs=[off, tf.nn.relu(on)])[0]
        tf.nn.l2_normalize(x @ kernel, 1, 1e-10, name="embeddings")
        saver = tf.compat.v1.train.Saver([kernel])
        session.run(kernel.initializer)
        for step in (9, 10):
            session.run(kernel.assign_add(tf.ones_like(start)))
            saver.save(session, str(folder / f"model-{name}.ckpt"), global_step=step, write_meta_graph=False)
        saver.export_meta_graph(str(folder / f"model-{name}.meta"))
        freeze = tf.compat.v1.graph_util.convert_variables_to_constants
        frozen = freeze(session, graph.as_graph_def(), ["embeddings"])
        (folder / f"{name}.pb").write_bytes(frozen.SerializeToString())
    return folder


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"__MACOSX/{folder.name}/._{folder.name}.pb", b"a shadow")
        for file in folder.iterdir():
            archive.write(file, f"{folder.name}/{file.name}")
    return path
