"""Google's benchmark programs as a fake phone runs them, for tests: options, output and result.

`fake_adb.py` starts it in place of the program that was pushed. FAKE_FAULTS names what goes wrong,
FAKE_MEDIANS the microseconds of the processes one after the other.
"""

import os
import signal
import struct
import sys
import time

KNOWN = {
    "benchmark_model": "graph num_threads use_xnnpack num_runs warmup_runs min_secs max_secs "
    "enable_op_profiling result_file_path",
    "benchmark_litert_model": "graph num_threads use_cpu use_gpu use_npu num_runs warmup_runs "
    "min_secs max_secs result_file_path",
}


def say(text):
    print(text, file=sys.stderr, flush=True)


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number, kind, value):
    if kind == 2:
        value = varint(len(value)) + value
    return varint(number << 3 | kind) + value


def floats(values):
    return b"".join(field(n, 5, struct.pack("<f", v)) for n, v in values.items())


def result(median, size, runs):
    """Returns BenchmarkResult; field numbers as in benchmark_result.proto, milliseconds."""
    order = (median, median - 5, median + 50, 3, median, median - 1, median + 2, 900, 200, 120)
    latency = floats({number + 1: value / 1000 for number, value in enumerate(order)})
    memory = field(1, 0, varint(100)) + field(2, 0, varint(200))
    misc = floats({1: size / 1e6}) + field(2, 0, varint(runs)) + field(3, 0, varint(12))
    parts = field(2, 2, latency) + field(3, 2, memory) + field(4, 2, misc)
    return field(1, 2, b"name") + parts


def main(name, faults, arguments):
    options = dict(a.removeprefix("--").split("=", 1) for a in arguments)
    known = set(KNOWN[name].split())
    if "old_build" in faults:
        known.remove("result_file_path")
    if "strange_build" in faults:
        known.remove("num_threads")
    median = int(os.environ["FAKE_MEDIAN"])
    say("INFO: STARTING!")
    strange = [a for a in arguments if a[2:].split("=")[0] not in known]
    if strange:
        say(f"WARNING: Unconsumed cmdline flags: {' '.join(strange)}")
    if "crash" in faults:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "out_of_memory" in faults:
        os.kill(os.getpid(), signal.SIGKILL)
    if "no_library" in faults:
        say('CANNOT LINK EXECUTABLE "x": library "libLiteRt.so" not found')
        return 1
    if "forever" in faults:
        time.sleep(600)
    if "mute" in faults:
        return 0
    if "operator" in faults:
        say("ERROR: Encountered unresolved custom op: LceQuantize.\nSee instructions: https://x.y")
        if name == "benchmark_litert_model":
            os.abort()
        say("ERROR: Failed to allocate tensors!\nERROR: Benchmarking failed.")
        return 1
    if "new_operator" in faults:
        say("ERROR: Didn't find op for builtin opcode 'CONV_2D' version '9'. An older version")
        say("ERROR: Failed to initialize the interpreter\nERROR: Benchmarking failed.")
        return 1
    if "model" in faults:
        say("ERROR: Failed to load model /data/x\nERROR: Benchmarking failed.")
        return 1
    size = os.path.getsize(options["graph"])
    size = 77 if "other_size" in faults else size
    runs = 0 if "no_runs" in faults else int(options["num_runs"])
    if options.get("use_xnnpack") == "true":
        whole = "partially executed by the delegate w/ 3" if "partial" in faults else (
            "completely executed by the delegate")  # fmt: skip
        say(f"INFO: Explicitly applied XNNPACK delegate, and the model graph will be {whole}.")
    say(f"INFO: The input model file size (MB): {size / 1e6:g}")
    if "result_file_path" in known:
        content = result(median, size, runs)
        content = content[:40] if "cut_result" in faults else content
        content = b"garbage" if "garbage" in faults else content
        with open(options["result_file_path"], "wb") as file:
            file.write(content)
    elif "garbage" in faults:
        say("\x00\x01 ???")
    else:
        end = "" if "no_median" in faults else f" p5={median - 1} median={median} p95={median + 2}"
        say(
            f"INFO: count=12 first=200 curr=110 min=100 max=200 avg=120 std=11{end}\n\n"
            f"INFO: count={runs} first={median} curr={median} min={median - 5} max={median + 50} "
            f"avg={median} std=3{end}\n\nINFO: Inference timings in us: Init: 900, First "
            f"inference: 200, Warmup (avg): 120, Inference (avg): {median}\nINFO: Memory footprint "
            "delta from the start of the tool (MB): init=0.0976562 overall=0.195312"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], os.environ.get("FAKE_FAULTS", "").split(","), sys.argv[2:]))
