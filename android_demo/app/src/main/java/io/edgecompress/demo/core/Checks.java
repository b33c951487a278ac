package io.edgecompress.demo.core;

import java.util.Locale;
import org.json.JSONArray;
import org.json.JSONObject;

/** Compares what was measured with the bundle's budgets. */
final class Checks {
    /** Repeats that lie further apart allow no verdict on latency. */
    static final double MOST_SPREAD_PERCENT = 5;

    private final JSONArray checks = new JSONArray();

    JSONArray toJson() {
        return checks;
    }

    void latency(double[] medians, double median, Double limit, Probe.Snapshot[] ends) {
        Statistics repeats = new Statistics(medians);
        String verdict = judge(repeats.min(), repeats.max(), limit);
        String reason = null;
        double spread = Statistics.spreadPercent(medians);
        if (limit != null) {
            if (spread > MOST_SPREAD_PERCENT) {
                reason = text("The repeats lie %.1f %% apart, more than 5 %%.", spread);
            } else if (hotter(ends[0], ends[1])) {
                reason = "The device got hotter and may have slowed down.";
            }
            if (reason != null) {
                verdict = "uncertain";
            } else if (verdict.equals("uncertain")) {
                reason = text("The limit of %.1f us lies between the repeats.", limit);
            } else if (verdict.equals("fail")) {
                reason = text("%.1f us is more than the limit of %.1f us.", median, limit);
            }
        }
        add("latency", verdict, median, repeats.min(), repeats.max(), limit, "microseconds", reason);
    }

    /** Latency that was not measured. */
    void noLatency(Double limit, String reason) {
        if (limit != null) {
            add("latency", "not_measured", null, null, null, limit, "microseconds", reason);
        }
    }

    void fileSize(long bytes, Double limit) {
        double size = bytes;
        String verdict = judge(size, size, limit);
        String reason = null;
        if (verdict.equals("fail")) {
            reason = text("%.0f bytes are more than the limit of %.0f bytes.", size, limit);
        }
        add("file_size", verdict, size, size, size, limit, "bytes", reason);
    }

    void ram(Double kb, Double limit) {
        if (kb == null) {
            if (limit != null) {
                String reason = "The system does not report the memory of this process.";
                add("ram", "not_measured", null, null, null, limit, "bytes", reason);
            }
            return;
        }
        double bytes = kb * 1024;
        String verdict = judge(bytes, bytes, limit);
        String reason = null;
        if (verdict.equals("fail")) {
            reason = text("%.0f bytes are more than the limit of %.0f bytes.", bytes, limit);
        }
        add("ram", verdict, bytes, bytes, bytes, limit, "bytes", reason);
    }

    void golden(GoldenCheck check) {
        Double steps = check.maxSteps() == null ? null : check.maxSteps().doubleValue();
        Double limit = steps == null ? null : Double.valueOf(check.allowedSteps());
        String verdict = check.passed() ? "pass" : "fail";
        String reason = null;
        if (!check.passed()) {
            reason = "The outputs differ from the golden ones by more than the bundle allows.";
        }
        add("golden", verdict, steps, steps, steps, limit, "steps", reason);
    }

    private void add(
            String rule,
            String verdict,
            Double measured,
            Double low,
            Double high,
            Double limit,
            String unit,
            String reason) {
        checks.put(
                Json.object()
                        .put("rule", rule)
                        .put("verdict", verdict)
                        .put("measured", measured)
                        .put("low", low)
                        .put("high", high)
                        .put("limit", limit)
                        .put("unit", unit)
                        .put("reason", reason)
                        .build());
    }

    /** A verdict is given only when the whole band lies on one side of the limit. */
    static String judge(double low, double high, Double limit) {
        if (limit == null) {
            return "not_applicable";
        }
        if (high <= limit) {
            return "pass";
        }
        return low > limit ? "fail" : "uncertain";
    }

    private static boolean hotter(Probe.Snapshot before, Probe.Snapshot after) {
        return before.thermal != null && after.thermal != null && after.thermal > before.thermal;
    }

    private static String text(String format, Object... values) {
        return String.format(Locale.ROOT, format, values);
    }
}
