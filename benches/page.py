#!/usr/bin/env python3
"""How fast the page of a home with very many assets is: the time and the weight of each view, and of the last page.

benches/page.py CAN_SYNC [ASSETS]     needs `pip install blake3` and a release build

The assets are written straight into the store's database, before the agent is started: their contents are a few
bytes each. The agent then takes them into its index and its journal; the views are measured when it has them all.
"""

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

from blake3 import blake3

VIEWS = ["/", "/devices", "/browse", "/browse?view=list", "/folders", "/health", "/activity", "/browse?q=asset-999"]
SHARED = ["/page.css", "/page.js", "/icon.svg"]
ROUNDS = 20


def fill(database, count):
    db = sqlite3.connect(database)
    base = 1_700_000_000_000
    total = 0
    with db:
        for at in range(1, count + 1):
            content = b"content %d" % at
            total += len(content)
            row = (at, blake3(content).digest(), len(content), base + at, at, f"asset-{at}.txt")
            db.execute(
                "INSERT INTO assets (cursor, hash, size_bytes, timestamp_ms, version, is_file, is_trashed, file_name,"
                " media_type, description) VALUES (?, ?, ?, ?, ?, 0, 0, ?, 'text/plain', '')", row)
            db.execute("INSERT INTO contents VALUES (?, ?)", (at, content))
        db.execute("UPDATE store SET newest_cursor = ?, asset_count = ?, asset_bytes = ?", (count, count, total))
    db.close()


class Agent:
    def __init__(self, program, home):
        self.program, self.home = program, home
        self.child = subprocess.Popen(
            [program, "--home", home, "--json", "up", "--offline", "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=open(os.path.join(home, "..", "log"), "a"), text=True)
        self.api = json.loads(self.child.stdout.readline())["api"].removeprefix("http://")

    def say(self, *args):
        done = subprocess.run([self.program, "--home", self.home, "--json", *args], capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[0])

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait()

    def memory_mb(self):
        for line in open(f"/proc/{self.child.pid}/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1]) // 1024


def main():
    program = os.path.abspath(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        home = os.path.join(folder, "home")
        os.mkdir(home, 0o700)
        Agent(program, home).stop()
        found = subprocess.run(["find", home, "-name", "store.db"], capture_output=True, text=True).stdout.split()
        began = time.time()
        fill(found[0], count)
        print(f"wrote {count} assets in {time.time() - began:.0f} s")
        agent = Agent(program, home)
        began = time.time()
        while agent.say("status")["store"]["assets"] < count:
            time.sleep(1)
        print(f"taken in after {time.time() - began:.0f} s, {agent.memory_mb()} MB")
        url = agent.say("open", "--no-browser")["url"]
        connection = http.client.HTTPConnection(agent.api)
        connection.request("GET", url.split(agent.api)[1])
        answer = connection.getresponse()
        answer.read()
        cookie = {"Cookie": answer.getheader("set-cookie").split(";")[0]}

        def get(path):
            began = time.perf_counter()
            connection.request("GET", path, headers=cookie)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, (path, answer.status)
            return (time.perf_counter() - began) * 1000, body

        shared = sum(len(get(path)[1]) for path in SHARED)
        for path in [*VIEWS, f"/browse?after={count}", f"/browse?after={count // 2}", "/browse?after=61"]:
            times = sorted(get(path)[0] for _ in range(ROUNDS))
            weight = (len(get(path)[1]) + shared) / 1000
            print(f"{path:24} median {times[ROUNDS // 2]:6.1f} ms  worst {times[-1]:6.1f} ms  {weight:5.1f} kB")
        before = agent.memory_mb()
        after, pages = count, 0
        while after > 60 and pages < 500:
            get(f"/browse?after={after}")
            after, pages = after - max(60, count // 500), pages + 1
        print(f"memory {before} MB, after {pages} pages {agent.memory_mb()} MB")
        agent.stop()


main()
