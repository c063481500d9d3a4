"""Are these two the same person? python examples/compare.py PHOTO PHOTO"""

import sys

from facenet_client import Client, raise_for_errors

with Client("127.0.0.1:50051") as client:
    (result,) = raise_for_errors(client.compare([(sys.argv[1], sys.argv[2])]))
    print("same" if result.same else "different", f"distance {result.distance:.3f} of {result.threshold:.2f}")
