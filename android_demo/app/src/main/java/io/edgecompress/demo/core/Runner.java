package io.edgecompress.demo.core;

import java.io.File;
import java.util.HashMap;
import java.util.Map;
import org.json.JSONObject;

/**
 * Runs a bundle on a computer as the app does on a phone.
 *
 * <p>java -cp ... io.edgecompress.demo.core.Runner --bundle DIR --result FILE [--threads 1,2]
 * [--xnnpack on,off] [--warmup N] [--runs N] [--min_s S] [--repeats N] [--models int8,...] [--tier
 * measured_host]
 *
 * <p>Exit code: 0 the result has no error, 1 it has one, 2 the arguments are wrong. In each case
 * where --result is given and can be written, the file is written.
 */
public final class Runner {
    private Runner() {}

    public static void main(String[] arguments) {
        System.exit(run(arguments));
    }

    static int run(String[] arguments) {
        Map<String, String> options = new HashMap<>();
        Failure wrong = null;
        try {
            parse(arguments, options);
        } catch (Failure e) {
            wrong = e;
        }
        String tier = options.containsKey("tier") ? options.get("tier") : "measured_host";
        BenchmarkRun run =
                new BenchmarkRun(
                        new TfliteEngine(), new HostProbe(), Clock.SYSTEM, tier, Version.NAME);
        run.listener(
                progress ->
                        System.out.printf(
                                "%d/%d %s, %d threads, XNNPACK %s, %.0f %%%n",
                                progress.step + 1,
                                progress.steps,
                                progress.kind,
                                progress.threads,
                                progress.xnnpack ? "on" : "off",
                                100 * progress.done));
        JSONObject result;
        try {
            if (wrong != null) {
                throw wrong;
            }
            Plan plan = Plan.parse(options);
            HostLibrary.load();
            result = run.run(new File(options.get("bundle")), plan);
        } catch (Failure e) {
            result = run.failed(e);
        }
        Result read = new Result(result);
        if (read.error != null) {
            System.err.println(read.error);
        }
        try {
            if (options.containsKey("result")) {
                Disk.writeAtomic(new File(options.get("result")), BenchmarkRun.toText(result));
            }
        } catch (Failure e) {
            System.err.println(e.getMessage());
            return 1;
        }
        boolean usage = wrong != null;
        return usage ? 2 : read.error == null ? 0 : 1;
    }

    private static void parse(String[] arguments, Map<String, String> options) throws Failure {
        Failure wrong = null;
        for (int i = 0; i < arguments.length; i++) {
            String key = arguments[i].startsWith("--") ? arguments[i].substring(2) : "";
            boolean known =
                    Plan.KEYS.contains(key)
                            || key.equals("bundle")
                            || key.equals("result")
                            || key.equals("tier");
            if (!known || i + 1 == arguments.length) {
                String got = arguments[i];
                wrong = bad("Arguments are --bundle DIR --result FILE and --key value. Got " + got);
            } else {
                options.put(key, arguments[++i]);
            }
        }
        String tier = options.get("tier");
        if (tier != null && !tier.equals("measured_host") && !tier.equals("measured_device")) {
            options.remove("tier");
            wrong = bad("--tier must be measured_host or measured_device. Got " + tier);
        }
        if (wrong == null && !(options.containsKey("bundle") && options.containsKey("result"))) {
            wrong = bad("--bundle DIR and --result FILE must be given");
        }
        if (wrong != null) {
            throw wrong;
        }
    }

    private static Failure bad(String message) {
        return new Failure(Failure.Code.ARGUMENTS, message + ".");
    }
}
