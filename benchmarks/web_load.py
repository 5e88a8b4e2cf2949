"""Many visitors at once: how long an answer takes, and whether every one comes.

``python benchmarks/web_load.py QUERIES --uri mgm.db --clients 50 --seconds 60`` serves the index on a loopback port and
lets so many clients ask with the images of a folder, each its next query as soon as it has its answer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queries", type=Path, help="folder of images to ask with")
    parser.add_argument("--uri", default="mgm.db")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    images = [file.read_bytes() for file in sorted(arguments.queries.rglob("*.jpg"))[:500]]
    command = [sys.executable, "-m", "mg_milvus", "serve", "--uri", arguments.uri, "--port", "0", "--read-only"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        place = urlsplit(server.stdout.readline().split()[0]).netloc
        ask(http.client.HTTPConnection(place), images[0])  # the encoder is loaded
        report(place, images, arguments.clients, arguments.seconds)
    finally:
        server.terminate()
        server.wait()


def ask(connection: http.client.HTTPConnection, image: bytes) -> bool:
    """Whether ten hits came."""
    connection.request("POST", "/api/query?k=10", image, {"content-type": "application/octet-stream"})
    answer = connection.getresponse()
    text = answer.read()
    return answer.status == 200 and len(json.loads(text)["hits"]) == 10


def report(place: str, images: list[bytes], clients: int, seconds: float) -> None:
    taken: list[float] = []
    failed: list[str] = []
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        choose = random.Random(number)
        connection = http.client.HTTPConnection(place, timeout=60)
        while time.perf_counter() < end:
            started = time.perf_counter()
            try:
                if not ask(connection, choose.choice(images)):
                    failed.append("refused")
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))
                connection.close()
            taken.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    cuts = statistics.quantiles(taken, n=100)
    metrics = http.client.HTTPConnection(place)
    metrics.request("GET", "/metrics")
    lines = dict(
        line.rsplit(" ", 1) for line in metrics.getresponse().read().decode().splitlines() if not line.startswith("#")
    )
    together = float(lines["mgm_batch_images_sum"]) / float(lines["mgm_batch_images_count"])
    print(f"{clients} clients, {elapsed:.0f} s: {len(taken)} queries, {len(failed)} failed {failed[:1]}")
    print(
        f"{len(taken) / elapsed:.0f} queries/s; median {1000 * cuts[49]:.0f} ms, 95 % within {1000 * cuts[94]:.0f} ms"
    )
    print(f"{together:.1f} images encoded together on average")


if __name__ == "__main__":
    main()
