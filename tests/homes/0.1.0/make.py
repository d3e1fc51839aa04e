#!/usr/bin/env python3
"""Makes the frozen homes of version 0.1.0: CANSYNC=<a can-sync 0.1.0> tests/homes/0.1.0/make.py

Two devices, desk and phone, in one group, with everything a home of that version can hold: small and
large assets, a partial asset, descriptions, tags, trash, events, records, and a removed member. The
result is desk.tar.gz and phone.tar.gz beside this file, and expected.json: what a newer version must
still find in them. The keys inside are public and good for tests only.

Run it once for a version that is released. The archives are data, not something to make again.
"""
import hashlib, json, os, pathlib, shutil, signal, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
BIN = os.environ["CANSYNC"]
ROOT = pathlib.Path(tempfile.mkdtemp(prefix="frozen-homes-"))
ENV = {k: v for k, v in os.environ.items() if not k.startswith("CAN_SYNC_")}


class Device:
    def __init__(self, name):
        self.name, self.home = name, ROOT / name
        self.start()
        self.run("rename", name)

    def start(self, *args):
        command = [BIN, "--home", self.home, "--json", "up", "--offline", "--listen", "127.0.0.1:0", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENV)
        if not self.process.stdout.readline().strip():
            sys.exit(f"{self.name} does not start")

    def run(self, *args, stdin=None):
        command = [BIN, "--home", self.home, *args]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=ENV, timeout=120)
        if done.returncode:
            sys.exit(f"{self.name}: {args}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def values(self, *args):
        return [json.loads(line) for line in self.run("--json", *args).splitlines()]

    def add(self, name, content, *args):
        path = ROOT / name
        path.write_bytes(content)
        return self.run("add", *args, str(path)).split()[0]

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(60)


def pair(host, guest):
    guest.run("pair", stdin=host.run("--quiet", "ticket"))


def patterned(count_bytes, seed):
    """Bytes that compress well and whose 16 KiB groups all differ."""
    line = b"%08d " + seed.encode() + b" the quick brown fox jumps over the lazy dog\n"
    lines = b"".join(line % n for n in range(count_bytes // 40))
    return lines[:count_bytes]


def until(what, condition):
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"not within a minute: {what}")
        time.sleep(0.05)


desk, phone, stolen = Device("desk"), Device("phone"), Device("stolen")
pair(desk, phone)
pair(desk, stolen)

note = desk.add("note.txt", b"buy milk\n", "--tag", "demo")
small = [desk.add(f"small-{n}.txt", b"small %d\n" % n) for n in range(20)]
large = desk.add("large.bin", patterned(700_000, "large"))
empty = phone.add("empty", b"")
photo = phone.add("photo.jpg", patterned(300_000, "photo"))
spoiled = stolen.add("spoiled.txt", b"from the device that is removed\n")
for device in (desk, phone, stolen):
    device.run("wait", "--timeout", "60s")

desk.run("describe", note, "what to buy")
desk.run("tag", note, "+todo", "-demo")
phone.run("tag", photo, "+holiday", "+sea")
phone.run("trash", small[3])
desk.run("trash", small[4])
desk.run("restore", small[4])
desk.run("records", "put", "shopping", "milk", "done=true", "shops+=corner")
phone.run("records", "put", "shopping", "eggs", "done=false")
phone.run("records", "put", "shopping", "gone", "done=false")
desk.run("records", "put", "shopping", "bread", "count=2")
stolen.run("records", "put", "shopping", "cake", "done=false")
for device in (desk, phone, stolen):
    device.run("wait", "--timeout", "60s")
phone.run("records", "delete", "shopping", "gone")
until("every record on the desk", lambda: len(desk.values("records", "ls", "shopping")) == 4)
until("every record on the phone", lambda: len(phone.values("records", "ls", "shopping")) == 4)
desk.run("remove", "stolen")
stolen.stop()
until("the removal is known", lambda: len(phone.values("peers")) == 1)

# A partial asset on the phone: killed while it arrives.
phone.stop()
phone.start("--bwlimit", "512K")
partial = desk.add("partial.bin", patterned(4_000_000, "partial"))
partials = phone.home / "partials"
until("a partial asset", lambda: sum(f.stat().st_blocks * 512 for f in partials.rglob("*") if f.is_file()) > 500_000)
phone.stop(signal.SIGKILL)
desk.stop()

# What they hold, as 0.1.0 says it, from copies so that the frozen homes stay as they were left.
expected = {"partial": partial, "spoiled": spoiled}
for name in ("desk", "phone"):
    archive = HERE / f"{name}.tar.gz"
    for made_at_start in ("lock", "api-address"):
        (ROOT / name / made_at_start).unlink(missing_ok=True)
    subprocess.run(["tar", "-C", ROOT, "-czf", archive, "--owner=0", "--group=0", "--numeric-owner", name], check=True)
for device in (desk, phone):
    device.start()
    expected[device.name] = {
        "node_id": device.values("status")[0]["device"]["node_id"],
        "assets": sorted(device.values("ls", "--all"), key=lambda asset: asset["hash"]),
        "records": sorted(device.values("records", "ls", "shopping"), key=lambda record: record["id"]),
        "events": len(device.values("log")),
    }
    device.stop()
(HERE / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
shutil.rmtree(ROOT)
