"""Package ``facenet.v1`` of the contract. Generated beside ``face.proto``: do not edit the ``_pb2`` files."""
