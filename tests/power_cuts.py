#!/usr/bin/env python3
"""Power cuts on real file systems: what an agent acknowledged is there after each of them.

    cargo build --release && sudo CUTS=500 SEED=1 tests/power_cuts.py

Each round makes a file system in an image file (ext4 and XFS in turn), mounts it through a loop
device, and runs an agent whose home is on it while four clients write records, events and assets,
small and large. At a random moment the power goes, in one of two ways:

  shutdown  the file system stops at once and drops what it had not written (FS_IOC_SHUTDOWN without
            a log flush): everything unsynced is lost, whatever order it was written in;
  copy      the image is cloned while it is written to (it lies on btrfs, so a clone is one moment):
            the disk as it was at some write, in the middle of whatever was going on.

The image is then mounted again and an agent starts on it. Wrong is: an agent that does not start, a
record, event or asset that was acknowledged and is not there or differs, a gap in event numbers, a
journal that `journal fsck` finds fault with, content that is not what was added.

Needs Linux, root, loop devices, mkfs.ext4, mkfs.xfs and mkfs.btrfs. Prints a line for each round;
exits 1 at the first fault and keeps the image.
"""
import fcntl, hashlib, http.client, json, os, pathlib, random, shutil, signal, struct, subprocess, sys, tempfile, threading, time

BIN = os.environ.get("CANSYNC", str(pathlib.Path(__file__).resolve().parent.parent / "target/release/can-sync"))
CUTS = int(os.environ.get("CUTS", "20"))
SEED = int(os.environ.get("SEED", "0")) or random.randrange(1, 1 << 32)
FS_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
WRITERS = 4
MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
IMAGE_BYTES = 320 << 20

# A mount that another process still holds would be found again by the next round: have our own.
if "POWER_CUTS_PRIVATE" not in os.environ:
    os.environ["POWER_CUTS_PRIVATE"] = "1"
    os.execvp("unshare", ["unshare", "-m", "--propagation", "private", sys.executable, *sys.argv])


def command(*words):
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


class Fault(Exception):
    pass


class Agent:
    def __init__(self, home, log):
        self.home = home
        env = {k: v for k, v in os.environ.items() if not k.startswith("CAN_SYNC_")}
        words = [BIN, "--home", home, "--json", "up", "--offline", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=open(log, "ab"), env=env)
        line = self.process.stdout.readline()
        if not line.strip():
            raise Fault(f"the agent does not start: {pathlib.Path(log).read_text()[-2000:]}")
        self.address = json.loads(line)["api"].removeprefix("http://")
        self.token = (home / "api-token").read_text().strip()

    def ask(self, method, path, body=None, kind="application/json"):
        """Status and body; None when the answer did not come whole."""
        link = http.client.HTTPConnection(self.address, timeout=20)
        try:
            link.request(method, path, body, {"Authorization": f"Bearer {self.token}", "Content-Type": kind})
            answer = link.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            link.close()

    def get(self, path):
        answered = self.ask("GET", path)
        if not answered or answered[0] != 200:
            raise Fault(f"GET {path}: {answered}")
        return answered[1]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Writer(threading.Thread):
    """Writes until told to stop, or nobody answers; keeps what was acknowledged."""

    def __init__(self, agent, number, seed):
        super().__init__()
        self.agent, self.number, self.random = agent, number, random.Random(seed)
        self.records, self.events, self.assets, self.stopped = {}, {}, {}, False

    def run(self):
        n = 0
        while not self.stopped:
            n += 1
            if not self.write(n):
                return

    def write(self, n):
        kind = self.random.random()
        if kind < 0.5:
            name = f"{self.number}-{n if kind < 0.4 else 0}"
            answered = self.agent.ask("PUT", f"/v1/records/power/{name}", json.dumps({"set": {"n": n}}))
            if answered and answered[0] == 200:
                self.records[name] = n
        elif kind < 0.75:
            data = {"by": self.number, "n": n}
            answered = self.agent.ask("POST", "/v1/events/power", json.dumps({"type": "wrote", "data": data}))
            if answered and answered[0] == 200:
                said = json.loads(answered[1])
                self.events[(said["log"], said["event_seqs"][0])] = data
        else:
            size = self.random.choice([0, 10, 1000, 60_000, 300_000, 900_000])
            content = self.random.randbytes(size) + b"%d %d" % (self.number, n)
            answered = self.agent.ask("POST", "/assets", content, "application/octet-stream")
            if answered and answered[0] in (200, 201):
                self.assets[json.loads(answered[1])["hash"]] = hashlib.sha256(content).digest()
        if answered and answered[0] not in (200, 201):
            # A disk that is going away may refuse; it must not acknowledge.
            return False
        return bool(answered)


def check(agent, writers):
    pages, after = {}, ""
    while True:
        page = json.loads(agent.get(f"/v1/records/power?limit=500{after}"))
        pages.update({row["id"]: row["fields"]["n"] for row in page["records"]})
        if not page.get("next"):
            break
        after = f"&after={page['next']}"
    events, after = {}, ""
    while True:
        page = json.loads(agent.get(f"/v1/events/power?limit=500{after}"))
        events.update({(row["log"], row["event_seq"]): row["data"] for row in page["events"]})
        if not page["more"]:
            break
        after = f"&after={page['next']}"
    numbers = {}
    for log, number in events:
        numbers.setdefault(log, set()).add(number)
    for log, found in numbers.items():
        if found != set(range(len(found))):
            raise Fault(f"the event numbers of log {log} have a gap")
    for writer in writers:
        for name, n in writer.records.items():
            if pages.get(name, -1) < n:
                raise Fault(f"record {name}: {pages.get(name)}, not {n}")
        for number, data in writer.events.items():
            if events.get(number) != data:
                raise Fault(f"event {number}: {events.get(number)}, not {data}")
        for name, digest in writer.assets.items():
            if hashlib.sha256(agent.get(f"/assets/{name}")).digest() != digest:
                raise Fault(f"asset {name} has other bytes")
    done = subprocess.run([BIN, "--home", agent.home, "journal", "fsck"], capture_output=True, text=True)
    if done.returncode:
        raise Fault(f"journal fsck: {done.stdout}{done.stderr}")


def mount(image, where, system):
    options = "loop" + (",nouuid" if system == "xfs" else "")
    command("mount", "-t", system, "-o", options, image, where)


def unmount(where):
    for _ in range(100):
        if subprocess.run(["umount", where], stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.05)
    raise Fault(f"{where} cannot be unmounted")


def acknowledged(writers):
    return sum(len(w.records) + len(w.events) + len(w.assets) for w in writers)


def cut(number, folder, totals):
    rng = random.Random(SEED * 1_000_003 + number)
    system, way = ("ext4", "xfs")[number % 2], ("shutdown", "copy")[number // 2 % 2]
    image, where, log = folder / "disk", folder / "mnt", folder.parent / "agent.log"
    image.unlink(missing_ok=True)
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    command(*MAKE[system], image)
    mount(image, where, system)
    log.write_bytes(b"")
    agent = Agent(where / "home", log)
    writers = [Writer(agent, n, rng.random()) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    # On a busy machine by writes, not by time.
    wanted, deadline = rng.randrange(1, 100), time.monotonic() + 30
    while acknowledged(writers) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.05))
    # What is acknowledged until the cut begins must be there; what comes later may be. After a real
    # cut nobody hears more, while here the agent lives on: an fsync that is under way when the file
    # system is shut down may be told that it succeeded, when its transaction ended in the shutdown.
    before = [(dict(w.records), dict(w.events), dict(w.assets)) for w in writers]
    if way == "shutdown":
        handle = os.open(where, os.O_RDONLY)
        fcntl.ioctl(handle, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os.close(handle)
        try:
            (where / "probe").write_text("")
            raise Fault("the file system takes writes after it was shut down: nothing was cut")
        except OSError:
            pass
        kept = image
    else:
        kept = folder / "copy"
        kept.unlink(missing_ok=True)
        command("cp", "--reflink=always", image, kept)
        for writer in writers:
            writer.stopped = True
    for writer in writers:
        if way == "shutdown":
            writer.stopped = True
    agent.kill()
    for writer in writers:
        writer.join()
    later = acknowledged(writers)
    for writer, (records, events, assets) in zip(writers, before):
        writer.records, writer.events, writer.assets = records, events, assets
    later -= acknowledged(writers)
    unmount(where)
    mount(kept, where, system)
    try:
        agent = Agent(where / "home", log)
        try:
            check(agent, writers)
        finally:
            agent.kill()
    finally:
        unmount(where)
    count = acknowledged(writers)
    totals[system, way] = totals.get((system, way), 0) + count
    print(f"{number + 1}/{CUTS} {system} {way}: {count} acknowledged, all there ({later} later)", flush=True)


def main():
    root = pathlib.Path(tempfile.mkdtemp(prefix="power-cuts-"))
    print(f"SEED={SEED} CUTS={CUTS}", flush=True)
    with open(root / "outer", "wb") as file:
        file.truncate(3 << 30)
    command("mkfs.btrfs", "-q", root / "outer")
    outer = root / "btrfs"
    outer.mkdir()
    command("mount", "-o", "loop", root / "outer", outer)
    (outer / "mnt").mkdir()
    totals = {}
    try:
        for number in range(CUTS):
            cut(number, outer, totals)
    except Fault as fault:
        kept = pathlib.Path(tempfile.gettempdir()) / f"power-cut-{SEED}-{number}"
        shutil.copy(outer / "disk", kept)
        print(f"WRONG in round {number + 1}: {fault}\nThe image is kept as {kept}")
        sys.exit(1)
    finally:
        subprocess.run(["umount", outer])
        shutil.rmtree(root, ignore_errors=True)
    print(f"{CUTS} cuts, {sum(totals.values())} writes acknowledged, none lost: {totals}")


main()
