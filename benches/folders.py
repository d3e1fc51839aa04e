#!/usr/bin/env python3
"""What it costs to keep directories in step: can-sync beside rsync, Unison and Syncthing, where they
are installed, on the same trees in the same run, from directory to directory on one machine.

    benches/folders.py --can-sync target/release/can-sync [SUBSET ...] [--rounds N] [--json PATH]

    live     from the end of a write in one directory until the other has the content
    small    10,000 files of 4 KiB appear in one directory, until the other has all (--files N)
             then the directory that holds them is renamed
    restart  100,000 files, nothing changed: from the start until all is known to be equal (--stock N)
    idle     CPU time and wake-ups of a device whose folder has nothing to do, in 60 s
    memory   memory of a device with a folder of 1,000,000 files above one without (--many N)

Linux only. `memory` makes a million files below --work and takes long: it runs only when named.
rsync and Unison do not watch: they are started at once after each change, which is the best that they
can do. Syncthing watches, with the shortest delay that it takes.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path

DEADLINE_S = 3600
NAME = "bench"


def wait(what, holds, pause_s=0.0005):
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > DEADLINE_S:
            sys.exit(f"not in time: {what}")
        time.sleep(pause_s)
    return time.monotonic() - start


def make_tree(top, files, size_bytes, seed):
    """Files of random bytes in directories of 100."""
    content = random.Random(seed)
    for at in range(files):
        if at % 100 == 0:
            folder = top / f"{at // 10000:03}" / f"{at // 100 % 100:02}"
            folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{at:07}.dat").write_bytes(content.randbytes(size_bytes))


def count(top):
    """The files of a tree, but for those that a program keeps for itself."""
    found = 0
    for path, dirs, files in os.walk(top):
        dirs[:] = [name for name in dirs if not name.startswith((".can-sync", ".st", ".unison"))]
        found += sum(not name.startswith((".can-sync", ".st", ".syncthing", ".unison")) for name in files)
    return found


def usage(pid):
    """CPU seconds, resident bytes, peak bytes and sleeps of a process so far."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    kib = lambda name: int(next(l for l in status.splitlines() if l.startswith(name)).split()[1])
    sleeps = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        sleeps += int(next(l for l in text.splitlines() if l.startswith("voluntary")).split()[1])
    cpu_s = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return cpu_s, kib("VmRSS:") * 1024, kib("VmHWM:") * 1024, sleeps


class Agent:
    """A `can-sync up` in a home of its own."""

    def __init__(self, program, home):
        self.program, self.home = program, home
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("CAN_SYNC")}
        self.start()

    def start(self):
        command = [self.program, "up", "--offline", "--json", "--listen", "127.0.0.1:0"]
        self.child = subprocess.Popen(
            command + ["--home", str(self.home)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self.environment)
        self.api = json.loads(self.child.stdout.readline())["api"]
        self.token = (self.home / "api-token").read_text().strip()

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait()
        self.child.stdout.close()

    def run(self, *args, text=""):
        done = subprocess.run([self.program, "--home", str(self.home), *args], input=text, text=True,
                              capture_output=True, env=self.environment)
        if done.returncode != 0:
            sys.exit(f"can-sync {args}: {done.stderr}")
        return done.stdout

    def get(self, path):
        request = urllib.request.Request(self.api + path)
        request.add_header("Authorization", f"Bearer {self.token}")
        return json.load(urllib.request.urlopen(request))

    def is_up_to_date(self, files=None):
        status = self.get(f"/v1/folders/{NAME}")
        binding = status["folder"]["binding"]
        if binding["state"] == "held":
            self.run("folder", "confirm", NAME)
        return binding["state"] == "up_to_date" and files in (None, status["files"])


class CanSync:
    name = "can-sync"

    def __init__(self, args, scratch, dirs):
        self.agents = [Agent(args.can_sync, scratch / f"home-{n}") for n in (0, 1)]
        ticket = self.agents[0].run("--quiet", "ticket")
        self.agents[1].run("pair", text=ticket)
        self.agents[0].run("folder", "add", str(dirs[0]), "--name", NAME)
        wait("the folder", lambda: NAME in self.agents[1].run("folder", "ls"), 0.05)
        self.agents[1].run("folder", "join", NAME, str(dirs[1]))
        self.settle()

    def settle(self, files=None):
        for agent in self.agents:
            wait("up to date", lambda: agent.is_up_to_date(files), 0.05)

    def now(self):
        """Called after a change; nothing to do: it is live."""

    def restart(self):
        for agent in self.agents:
            agent.stop()
        start = time.monotonic()
        for agent in self.agents:
            agent.start()
        for agent in self.agents:
            wait("up to date", lambda: agent.is_up_to_date(), 0.005)
        return time.monotonic() - start

    def stop(self):
        for agent in self.agents:
            agent.stop()


class Once:
    """A program that is run after each change."""

    def __init__(self, args, scratch, dirs):
        self.dirs = dirs
        self.environment = {**os.environ, "UNISON": str(scratch / "unison")}

    def now(self):
        done = subprocess.run(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env=self.environment)
        if done.returncode != 0:
            sys.exit(f"{self.command()}: {done.returncode}")

    def settle(self, files=None):
        self.now()

    def restart(self):
        start = time.monotonic()
        self.now()
        return time.monotonic() - start

    def stop(self):
        pass


class Rsync(Once):
    name = "rsync"

    def command(self):
        return ["rsync", "-a", "--delete", f"{self.dirs[0]}/", f"{self.dirs[1]}/"]


class RsyncDurable(Rsync):
    name = "rsync --fsync"

    def command(self):
        return [*super().command(), "--fsync"]


class Unison(Once):
    name = "unison"

    def command(self):
        return ["unison", str(self.dirs[0]), str(self.dirs[1]), "-batch", "-auto", "-silent",
                "-confirmbigdel=false", "-times"]


class Syncthing:
    name = "syncthing"

    def __init__(self, args, scratch, dirs):
        self.homes = [scratch / f"syncthing-{n}" for n in (0, 1)]
        self.dirs, ids, ports = dirs, [], []
        for home in self.homes:
            subprocess.run(["syncthing", "generate", f"--home={home}", "--no-default-folder"],
                           check=True, capture_output=True)
            ids.append(subprocess.run(["syncthing", f"--home={home}", "--device-id"], check=True,
                                      capture_output=True, text=True).stdout.strip())
            ports.append([free_port(), free_port()])
        self.apis = []
        for n, home in enumerate(self.homes):
            config = ElementTree.parse(home / "config.xml")
            root = config.getroot()
            for old in root.findall("device") + root.findall("folder"):
                root.remove(old)
            for device in (0, 1):
                element = ElementTree.SubElement(root, "device", id=ids[device], name=str(device))
                ElementTree.SubElement(element, "address").text = f"tcp://127.0.0.1:{ports[device][1]}"
            folder = ElementTree.SubElement(
                root, "folder", id=NAME, path=str(dirs[n]), type="sendreceive",
                rescanIntervalS="3600", fsWatcherEnabled="true", fsWatcherDelayS="1")
            for device in (0, 1):
                ElementTree.SubElement(folder, "device", id=ids[device])
            options = root.find("options")
            settings = {"listenAddress": f"tcp://127.0.0.1:{ports[n][1]}", "globalAnnounceEnabled": "false",
                        "localAnnounceEnabled": "false", "relaysEnabled": "false", "natEnabled": "false",
                        "startBrowser": "false", "reconnectionIntervalS": "1",
                        "urAccepted": "-1", "crashReportingEnabled": "false"}
            for name, value in settings.items():
                for old in options.findall(name):
                    options.remove(old)
                ElementTree.SubElement(options, name).text = value
            gui = root.find("gui")
            gui.find("address").text = f"127.0.0.1:{ports[n][0]}"
            self.apis.append((f"http://127.0.0.1:{ports[n][0]}", gui.find("apikey").text))
            config.write(home / "config.xml")
            (dirs[n] / ".stfolder").mkdir(exist_ok=True)
        self.start()

    def start(self):
        self.children = [
            subprocess.Popen(["syncthing", "serve", f"--home={home}", "--no-browser", "--no-restart"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for home in self.homes]
        self.settle()

    def get(self, n, path):
        url, key = self.apis[n]
        request = urllib.request.Request(url + path, headers={"X-API-Key": key})
        return json.load(urllib.request.urlopen(request))

    def is_idle(self, files):
        try:
            found = [self.get(n, f"/rest/db/status?folder={NAME}") for n in (0, 1)]
        except (OSError, ValueError):
            return False
        return (all(one["state"] == "idle" and one["needTotalItems"] == 0 for one in found)
                and found[0]["globalFiles"] == found[1]["globalFiles"]
                and files in (None, found[1]["localFiles"]))

    def settle(self, files=None):
        wait("idle", lambda: self.is_idle(files), 0.05)

    def now(self):
        pass

    def restart(self):
        self.stop()
        start = time.monotonic()
        self.start()
        return time.monotonic() - start

    def stop(self):
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def installed(args):
    tools = [CanSync]
    if shutil.which("rsync"):
        tools += [Rsync, RsyncDurable]
    tools += [tool for tool in (Unison, Syncthing) if shutil.which(tool.name)]
    return [tool for tool in tools if not args.tools or tool.name in args.tools]


def with_each_tool(args, measure):
    for tool in installed(args):
        scratch = Path(tempfile.mkdtemp(prefix="folders-", dir=args.work))
        dirs = [scratch / "a", scratch / "b"]
        for folder in dirs:
            folder.mkdir()
        running = None
        try:
            running = tool(args, scratch, dirs)
            for figure, value, unit in measure(running, dirs):
                report(args, f"{figure}, {tool.name}", value, unit)
        finally:
            if running is not None:
                running.stop()
            shutil.rmtree(scratch, ignore_errors=True)


def report(args, figure, value, unit):
    args.figures.setdefault(figure, (unit, []))[1].append(value)
    print(f"{figure}: {value:.2f} {unit}", file=sys.stderr, flush=True)


def live(args):
    edits = 10 if args.quick else 100

    def measure(tool, dirs):
        content, took = random.Random(7), []
        for n in range(edits):
            # In step with no timer.
            time.sleep(content.uniform(0.05, 0.25) if not isinstance(tool, Syncthing) else 0.5)
            wanted = content.randbytes(2000)
            here, there = dirs[0] / f"{n % 10}.txt", dirs[1] / f"{n % 10}.txt"
            here.write_bytes(wanted)
            start = time.monotonic()
            tool.now()
            wait("the edit", lambda: there.exists() and there.read_bytes() == wanted)
            took.append((time.monotonic() - start) * 1000)
        took.sort()
        yield "live edit p50", statistics.median(took), "ms"
        yield "live edit p95", took[int(len(took) * 0.95)], "ms"

    with_each_tool(args, measure)


def small(args):
    def measure(tool, dirs):
        before = Path(args.work) / "made"
        shutil.rmtree(before, ignore_errors=True)
        make_tree(before, args.files, 4096, 1)
        os.sync()
        start = time.monotonic()
        os.rename(before, dirs[0] / "tree")
        tool.now()
        wait("all files", lambda: count(dirs[1]) == args.files, 0.02)
        yield f"{args.files} files of 4 KiB", time.monotonic() - start, "s"
        tool.settle(args.files)
        start = time.monotonic()
        os.rename(dirs[0] / "tree", dirs[0] / "renamed")
        tool.now()
        wait("the new name",
             lambda: not (dirs[1] / "tree").exists() and count(dirs[1]) == args.files, 0.02)
        yield f"rename of a directory of {args.files} files", time.monotonic() - start, "s"

    with_each_tool(args, measure)


def restart(args):
    def measure(tool, dirs):
        make_tree(dirs[0], args.stock, 200, 2)
        tool.settle(args.stock)
        wait("all files", lambda: count(dirs[1]) == args.stock, 0.5)
        tool.settle(args.stock)
        tool.restart()
        yield f"restart with {args.stock} files", tool.restart(), "s"

    with_each_tool(args, measure)


def idle(args):
    def measure(tool, dirs):
        if not isinstance(tool, CanSync):
            return
        make_tree(dirs[0], 1000, 200, 3)
        tool.settle(1000)
        time.sleep(30)
        before = usage(tool.agents[0].child.pid)
        time.sleep(60)
        after = usage(tool.agents[0].child.pid)
        yield "CPU in 60 s of nothing to do", (after[0] - before[0]) * 1000, "ms"
        yield "sleeps of all threads in 60 s of nothing to do", after[3] - before[3], ""

    with_each_tool(args, measure)


def memory(args):
    scratch = Path(tempfile.mkdtemp(prefix="folders-", dir=args.work))
    try:
        tree = scratch / "tree"
        tree.mkdir()
        make_tree(tree, args.many, 16, 4)
        agent = Agent(args.can_sync, scratch / "home")
        agent.run("folder", "add", str(tree), "--name", NAME)
        took = wait("all taken in", lambda: agent.is_up_to_date(args.many), 2)
        report(args, f"{args.many} files taken in", took, "s")
        agent.stop()
        agent.start()
        took = wait("all known", agent.is_up_to_date, 0.05)
        report(args, f"restart with {args.many} files", took, "s")
        time.sleep(60)
        _, bound, peak, _ = usage(agent.child.pid)
        # The same store and journal, without a directory.
        agent.run("folder", "remove", NAME)
        agent.stop()
        agent.start()
        time.sleep(60)
        _, without, _, _ = usage(agent.child.pid)
        report(args, "memory without the folder", without / 2**20, "MiB")
        report(args, f"memory with a folder of {args.many} files", bound / 2**20, "MiB")
        report(args, "the highest since the start", peak / 2**20, "MiB")
        report(args, "above the agent without it", (bound - without) / 2**20, "MiB")
        agent.stop()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


SUBSETS = {"live": live, "small": small, "restart": restart, "idle": idle, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("subsets", nargs="*", metavar="SUBSET", choices=[*SUBSETS, []])
    parser.add_argument("--can-sync", required=True, type=os.path.abspath)
    parser.add_argument("--work", default=tempfile.gettempdir(), help="where the trees are made")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--stock", type=int, default=100_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--tools", nargs="*", help="only these")
    parser.add_argument("--quick", action="store_true", help="a tenth of the live edits")
    parser.add_argument("--json")
    args = parser.parse_args()
    args.figures = {}
    for name in args.subsets or [name for name in SUBSETS if name != "memory"]:
        for _ in range(args.rounds if name != "memory" else 1):
            SUBSETS[name](args)
    for figure, (unit, values) in args.figures.items():
        spread = "" if len(values) == 1 else f"  ({min(values):.2f} to {max(values):.2f})"
        print(f"{figure:58} {statistics.median(values):10.2f} {unit}{spread}")
    if args.json:
        table = {figure: {"unit": unit, "values": values} for figure, (unit, values) in args.figures.items()}
        Path(args.json).write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
