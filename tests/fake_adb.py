"""An `adb` with a phone behind it, for tests: answers as the real one does, faults included.

The `adb` that a test puts into PATH imports it. Tests call it a thousand times, so libraries are
imported only where a call needs them. The phone is the folder of FAKE_PHONE; FAKE_FAULTS names what
goes wrong, FAKE_DEVICES is what `adb devices` lists, FAKE_MEDIANS the microseconds of the
processes, FAKE_THERMAL their thermal status before and after (`0-1,0-0`), and FAKE_STATUS what
`dumpsys thermalservice` says, one after the other. With FAKE_APP, a command, that program measures
instead.

What runs a benchmark program is a script of the phone's shell, and a real shell runs it here, with
the program FAKE_BENCHMARK in place of the pushed one. FAKE_ABIS is what the phone runs, and
FAKE_INSTALL what it says instead of taking an app.
"""

import os
import sys
import time

PHONE = os.environ["FAKE_PHONE"]
FAULTS = os.environ.get("FAKE_FAULTS", "").split(",")
PACKAGE = "io.edgecompress.demo"
ROOT = "/sdcard/Android/data/io.edgecompress.demo/files"
STATE = {
    "thermal_before": 0, "thermal_after": 0, "thermal_headroom_before": None,
    "thermal_headroom_after": None, "battery_before": 0.9, "battery_after": 0.8,
    "battery_temperature_c": 30.1, "charging": True, "power_save": False, "governor": None,
    "load_before": None, "load_after": None, "available_kb": 4000000,
}  # fmt: skip


PROPERTIES = {
    "ro.product.manufacturer": "Google", "ro.product.model": "Pixel 8", "ro.soc.model": "Tensor G3",
    "ro.product.cpu.abilist": os.environ.get("FAKE_ABIS", "arm64-v8a,armeabi-v7a,armeabi"),
    "ro.build.version.release": "14", "ro.build.version.sdk": "34",
    "ro.build.fingerprint": "google/shiba/shiba:14/x:user/release-keys",
}  # fmt: skip
MEMINFO = "MemTotal:        7800000 kB\nMemFree: 1 kB\nMemAvailable:    4000000 kB"
FACTS = {
    "getprop": "\n".join(f"[{name}]: [{value}]" for name, value in PROPERTIES.items()),
    "cat /proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n",
    "cat /proc/meminfo": MEMINFO,
    "for c": "\n".join(f"/sys/devices/system/cpu/cpu{n} {1700000 + n}" for n in (0, 10, 2)),
    "dumpsys battery": "Current Battery Service state:\n  USB powered: true\n  status: 2\n"
    "  level: 85\n  scale: 100\n  temperature: 301\n",
    "settings get global low_power": "0",
    "cat /sys/devices": "walt",
    "cat /proc/loadavg": "1.50 1.20 1.10 1/900 12345",
}
MARK = "; echo '== edgecompress'; "
TOOLS = "/data/local/tmp/edgecompress"


def count(name):
    """Returns how often this was called with a name before."""
    path = os.path.join(PHONE, f".{name}")
    with open(path, "a+") as file:
        file.seek(0)
        seen = len(file.read())
        file.write(".")
    return seen


def local(path):
    return os.path.join(PHONE, path.lstrip("/"))


def fail(text):
    print(text, file=sys.stderr)
    return 1


def pick(variable, number, default):
    values = os.environ.get(variable, default).split(",")
    return values[min(number, len(values) - 1)]


def measure(extras, number):
    """Writes the result file as the app does."""
    import hashlib
    import json
    import shlex
    import subprocess

    folder = local(f"{ROOT}/bundles/{extras['bundle']}")
    path = local(f"{ROOT}/results/{extras['result']}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.environ.get("FAKE_APP"):
        own = {"bundle": folder, "result": path, "tier": "measured_device"}
        words = [word for k, v in {**extras, **own}.items() for word in (f"--{k}", v)]
        subprocess.run(shlex.split(os.environ["FAKE_APP"]) + words, stdout=subprocess.DEVNULL)
        return
    with open(os.path.join(folder, "bundle.json"), "rb") as file:
        content = file.read()
    bundle = json.loads(content)
    median = float(pick("FAKE_MEDIANS", number, "100"))
    before, after = pick("FAKE_THERMAL", number, "0-0").split("-")
    state = {**STATE, "thermal_before": int(before), "thermal_after": int(after)}
    entries = []
    for model in bundle["models"]:
        if model["kind"] not in extras["models"].split(","):
            continue
        with open(os.path.join(folder, model["file"]), "rb") as file:
            data = file.read()
        digest = "c" * 64 if "other_model" in FAULTS else hashlib.sha256(data).hexdigest()
        wrong = "wrong_outputs" in FAULTS
        operator = {"code": "operator", "message": "It needs Larq Compute Engine."}
        refused = "refused" in FAULTS
        for threads in extras["threads"].split(","):
            entries.append({
                "tier": "measured_device", "target": bundle["target"],
                "model": {"sha256": digest, "bytes": len(data), "kind": model["kind"],
                          "file": model["file"]},
                "runtime": {"name": "TensorFlow Lite", "version": "2.16.1", "api": "Interpreter",
                            "delegate": "XNNPACK", "kernels": "XNNPACK"},
                "config": {"threads": int(threads), "xnnpack": extras["xnnpack"] == "on",
                           "affinity": None, "warmup": 10, "runs": int(extras["runs"]),
                           "min_s": float(extras["min_s"]), "repeats": 5, "processes": 1,
                           "input": "golden"},
                "state": state,
                "latency_us": None if refused else {
                    "init": 900.0, "first": 200.0, "warmup": 120.0, "min": median - 5,
                    "p5": median - 1, "median": median, "p90": median + 1, "p95": median + 2,
                    "max": median + 50, "mean": median, "std": 3.0, "spread_pct": 1.0,
                    "samples": 50, "inferences_per_sample": 1, "repeat_medians": [median] * 5,
                    "histogram": {"edges": [median - 5, median, median + 5], "counts": [30, 20]}},
                "memory_kb": {"init": 100.0, "overall": 200.0, "peak": None},
                "golden": None if refused else {
                    "checked": 24, "equal": 20 if wrong else 24, "max_steps": 9 if wrong else 0,
                    "max_error": None, "passed": not wrong, "kernels": "XNNPACK",
                    "allowed_steps": 1, "same_answer": 8, "samples": 8},
                "checks": [], "output_sha256": None, "error": operator if refused else None,
                "time": "2026-01-02T03:04:05Z",
            })  # fmt: skip
    digest = "d" * 64 if "other_bundle" in FAULTS else hashlib.sha256(content).hexdigest()
    failed = {"code": "storage", "message": "There is no room."} if "no_room" in FAULTS else None
    result = {
        "schema": "edgecompress.measurement/1",
        "tool": {"name": "edgecompress-demo", "version": "0.1"},
        "time": "2026-01-02T03:04:05Z",
        "bundle": {"name": bundle["name"], "target": bundle["target"], "sha256": digest},
        "device": {"manufacturer": "Google", "model": "Pixel 8", "soc": "Tensor G3",
                   "abi": "arm64-v8a", "android": "14", "sdk": 34, "build_fingerprint": "g/shiba",
                   "cpu_features": ["asimddp"], "cores": 9, "max_freq_khz": [None] * 9,
                   "ram_kb": 7800000},
        "state": state,
        "measurements": [] if failed else entries,
        "error": failed,
    }  # fmt: skip
    text = json.dumps(result)
    if "nan" in FAULTS:
        text = text.replace('"mean": 100.0', '"mean": NaN')
    if "truncated" in FAULTS:
        text = text[: len(text) // 2]
    with open(path, "w") as file:
        file.write(text)


def start(words):
    if "old_app" in FAULTS:
        print(
            "Starting: Intent { cmp=io.edgecompress.demo/.HeadlessActivity }\nError type 3\n"
            "Error: Activity class {io.edgecompress.demo/.HeadlessActivity} does not exist."
        )
        return 0  # As older phones do.
    extras = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-e"}
    import json

    with open(os.path.join(PHONE, "extras.json"), "w") as file:
        json.dump(extras, file)
    print("Starting: Intent { cmp=io.edgecompress.demo/.HeadlessActivity }\nStatus: ok")
    if not {"killed", "endless"} & set(FAULTS):
        measure(extras, count("starts"))
    return 0


def look(text):
    path = text.split("[ -f ")[1].split(" ]")[0]
    if "unplugged" in FAULTS:
        return fail("adb: device 'PHONE1' not found")
    if os.path.exists(local(path)) and count("looks"):
        print("done")
    else:
        print("gone" if "killed" in FAULTS else "running")
    print(
        "--------- beginning of main\n01-01 10:00:00.000  1  1 I edgecompress: 1/1 int8 threads=1"
    )
    return 0


def fact(command):
    if command.startswith("dumpsys thermalservice"):
        return f"Thermal Status: {pick('FAKE_STATUS', count('status'), '0')}"
    if "denied" in FAULTS:
        return ""
    return next(text for start, text in FACTS.items() if command.startswith(start))


def script(text):
    """Runs a script in a real shell, in the phone's folder."""
    import subprocess

    if "unplugged" in FAULTS and "wait" in text:
        return fail("adb: device 'PHONE1' not found")
    for name in ("benchmark_litert_model", "benchmark_model"):
        started = text.find(f"/{name} ")
        if started > 0:
            begin = text.rindex(" ", 0, started) + 1
            with open(os.path.join(PHONE, "command.txt"), "w") as file:
                file.write(text[begin:])
            run = f"{sys.executable} -SE {os.environ['FAKE_BENCHMARK']} {name} "
            text = text[:begin] + run + text[started + len(name) + 2 :]
            os.environ["FAKE_MEDIAN"] = pick("FAKE_MEDIANS", count("starts"), "100")
            break
    return subprocess.run(["sh", "-c", text.replace(TOOLS, local(TOOLS))]).returncode


def shell(text):
    if text.startswith("if "):
        return look(text)
    if MARK in text:
        print("\n== edgecompress\n".join(map(fact, text.split(MARK))))
        return 0
    if text.startswith("cd "):
        return script(text)
    import shlex

    words = shlex.split(text)
    if words[:2] == ["pm", "path"]:
        if "no_app" not in FAULTS:
            print(f"package:/data/app/{words[2]}/base.apk")
    elif words[0] == "mkdir":
        for path in words[2:]:
            os.makedirs(local(path), exist_ok=True)
    elif words[0] == "sha256sum" and "no_sha256sum" in FAULTS:
        fail("/system/bin/sh: sha256sum: inaccessible or not found")
        return 127
    elif words[0] == "sha256sum":
        import hashlib

        for path in words[1:]:
            if os.path.exists(local(path)):
                with open(local(path), "rb") as file:
                    print(f"{hashlib.sha256(file.read()).hexdigest()}  {path}")
            else:
                print(f"sha256sum: {path}: No such file or directory", file=sys.stderr)
    elif words[0] == "chmod":
        os.chmod(local(words[2]), int(words[1], 8))
    elif words[0] == "rm":
        if os.path.exists(local(words[-1])):
            os.unlink(local(words[-1]))
    elif words[:2] == ["am", "start"]:
        return start(words)
    elif words[:2] == ["am", "force-stop"]:
        count("stops")
    elif words[0] == "dumpsys":
        print(
            f"IsStatusOverride: false\nThermal Status: {pick('FAKE_STATUS', count('status'), '0')}"
        )
    else:
        return fail(f"/system/bin/sh: {words[0]}: inaccessible or not found")
    return 0


def install(words):
    refusal = os.environ.get("FAKE_INSTALL")
    print("Performing Streamed Install")
    if words[0] != "-r" or not words[1].endswith(".apk"):
        return fail(f"adb: filename doesn't end .apk or .apex: {words[1]}")
    if refusal:
        # Older ones end well all the same.
        fail(f"adb: failed to install {words[1]}: Failure [{refusal}]")
        return 0 if "old_adb" in FAULTS else 1
    with open(words[1], "rb") as source, open(os.path.join(PHONE, "base.apk"), "wb") as target:
        target.write(source.read())
    print("Success")
    return 0


def main(arguments):
    if "hang" in FAULTS:
        time.sleep(600)
    if arguments == ["devices"]:
        if "server" in FAULTS:
            return fail("error: cannot connect to daemon")
        print("* daemon not running; starting now at tcp:5037\n* daemon started successfully")
        print("List of devices attached")
        print(os.environ.get("FAKE_DEVICES", "PHONE1\tdevice") + "\n")
        return 0
    assert arguments[:1] == ["-s"]
    command, rest = arguments[2], arguments[3:]
    if command == "shell":
        return shell(rest[0])
    if command == "install":
        return install(rest)
    if command == "push":
        if "push" in FAULTS:
            return fail("adb: error: failed to copy: remote write failed: No space left on device")
        with open(rest[0], "rb") as source, open(local(rest[1]), "wb") as target:
            target.write(source.read()[: 1 if "short_push" in FAULTS else None])
        count("pushes")
    elif command == "pull":
        if "pull" in FAULTS:
            return fail("adb: error: failed to stat remote object: Permission denied")
        with open(local(rest[0]), "rb") as source, open(rest[1], "wb") as target:
            target.write(source.read())
    elif command == "logcat":
        print("--------- beginning of crash\nE AndroidRuntime: java.lang.OutOfMemoryError")
    return 0
