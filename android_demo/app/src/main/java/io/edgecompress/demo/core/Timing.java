package io.edgecompress.demo.core;

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.List;
import org.json.JSONObject;

/** Times a loaded model; all times in microseconds. */
final class Timing {
    // The clock of some phones moves in steps of 0.05 us: a sample lasts long enough for 0.5 %.
    private static final double SHORTEST_SAMPLE_US = 20;
    private static final int LARGEST_GROUP = 10_000;

    /** Hears which share of the timed part is done. */
    interface Part {
        void done(double share);
    }

    private final Engine.Session session;
    private final List<ByteBuffer[]> inputs;
    private final ByteBuffer[] outputs;
    private final Clock clock;
    private final Cancellation cancellation;
    private int next;

    private double first;
    private Double warmup;
    private int group = 1;
    private double[] medians;
    private Statistics all;

    Timing(
            Engine.Session session,
            List<ByteBuffer[]> inputs,
            ByteBuffer[] outputs,
            Clock clock,
            Cancellation cancellation) {
        this.session = session;
        this.inputs = inputs;
        this.outputs = outputs;
        this.clock = clock;
        this.cancellation = cancellation;
    }

    /** Times the first inference. */
    void first() throws Failure {
        first = sample(1);
    }

    /** Warms up, then takes at least `runs` samples and `minSeconds` in `repeats` parts. */
    void run(Plan plan, Part part) throws Failure {
        double estimate = first;
        if (plan.warmup > 0) {
            double sum = 0;
            double fastest = Double.MAX_VALUE;
            for (int i = 0; i < plan.warmup; i++) {
                cancellation.check();
                double time = sample(1);
                sum += time;
                fastest = Math.min(fastest, time);
            }
            warmup = sum / plan.warmup;
            estimate = fastest;
        }
        if (estimate < SHORTEST_SAMPLE_US) {
            double wanted = Math.ceil(SHORTEST_SAMPLE_US / Math.max(estimate, 1e-3));
            group = (int) Math.min(wanted, LARGEST_GROUP);
        }
        int repeats = Math.min(plan.repeats, plan.runs);
        medians = new double[repeats];
        double[] samples = new double[Math.max(plan.runs, 1024)];
        int count = 0;
        for (int repeat = 0; repeat < repeats; repeat++) {
            int begin = count;
            int least = (int) ((long) plan.runs * (repeat + 1) / repeats) - begin;
            long start = clock.nanos();
            double seconds = plan.minSeconds / repeats;
            for (double spent = 0; count - begin < Math.max(least, 1) || spent < seconds; ) {
                cancellation.check();
                if (count == samples.length) {
                    samples = Arrays.copyOf(samples, 2 * count);
                }
                samples[count++] = sample(group);
                spent = (clock.nanos() - start) / 1e9;
                double byTime = seconds > 0 ? spent / seconds : 1;
                double byCount = least > 0 ? (count - begin) / (double) least : 1;
                part.done((repeat + Math.min(1, Math.min(byTime, byCount))) / repeats);
            }
            medians[repeat] = new Statistics(Arrays.copyOfRange(samples, begin, count)).median();
        }
        all = new Statistics(Arrays.copyOf(samples, count));
    }

    /** Returns the mean time of `count` inferences one after the other. */
    private double sample(int count) throws Failure {
        ByteBuffer[] input = inputs.get(next);
        next = (next + 1) % inputs.size();
        long start = clock.nanos();
        for (int i = 0; i < count; i++) {
            session.run(input, outputs);
        }
        return (clock.nanos() - start) / 1e3 / count;
    }

    double[] medians() {
        return medians.clone();
    }

    Statistics all() {
        return all;
    }

    /** Returns the object `latency_us` of the measurement's schema. */
    JSONObject toJson(double init) {
        return Json.object()
                .put("init", init)
                .put("first", first)
                .put("warmup", warmup)
                .put("min", all.min())
                .put("p5", all.percentile(5))
                .put("median", all.median())
                .put("p90", all.percentile(90))
                .put("p95", all.percentile(95))
                .put("max", all.max())
                .put("mean", all.mean())
                .put("std", all.std())
                .put("spread_pct", Statistics.spreadPercent(medians))
                .put("samples", all.count())
                .put("inferences_per_sample", group)
                .put("repeat_medians", Json.array(medians))
                .put("histogram", all.histogram())
                .build();
    }
}
