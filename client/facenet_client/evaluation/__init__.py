"""Evaluation of a served model: the LFW protocol, calibration, parity with the reference.

What is here is pure (arrays in, figures out) and needs the extra ``facenet-serve[evaluate]``; the commands under
``facenet evaluate`` bring the embeddings from the server.
"""
