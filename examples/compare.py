"""Are these two the same person? python examples/compare.py PHOTO PHOTO"""

import sys

from facenet_client import Client, FaceNetError, raise_for_errors

with Client("127.0.0.1:50051", timeout_s=10) as client:
    try:
        (result,) = raise_for_errors(client.compare([(sys.argv[1], sys.argv[2])]))
    except FaceNetError as error:  # of the call, or of one of the photos
        sys.exit(f"no answer: {error}")
print("same" if result.same else "different", f"distance {result.distance:.3f} of {result.threshold:.2f}")
