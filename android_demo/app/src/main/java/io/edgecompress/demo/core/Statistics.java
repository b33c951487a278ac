package io.edgecompress.demo.core;

import java.util.Arrays;
import org.json.JSONObject;

/** Statistics of timed samples, in the unit of the samples. */
public final class Statistics {
    private static final int BINS = 24;

    private final double[] sorted;

    public Statistics(double[] samples) {
        if (samples.length == 0) {
            throw new IllegalArgumentException("Statistics need a sample.");
        }
        sorted = samples.clone();
        Arrays.sort(sorted);
    }

    public int count() {
        return sorted.length;
    }

    public double min() {
        return sorted[0];
    }

    public double max() {
        return sorted[sorted.length - 1];
    }

    public double median() {
        return percentile(50);
    }

    /** Returns a percentile, linear between neighbors. */
    public double percentile(double percent) {
        double rank = percent / 100 * (sorted.length - 1);
        int low = (int) Math.floor(rank);
        int high = Math.min(low + 1, sorted.length - 1);
        return sorted[low] + (rank - low) * (sorted[high] - sorted[low]);
    }

    public double mean() {
        double sum = 0;
        for (double sample : sorted) {
            sum += sample;
        }
        return sum / sorted.length;
    }

    /** Returns the standard deviation of the population. */
    public double std() {
        double mean = mean();
        double sum = 0;
        for (double sample : sorted) {
            sum += (sample - mean) * (sample - mean);
        }
        return Math.sqrt(sum / sorted.length);
    }

    /** Returns how far values lie apart: (largest / smallest - 1) in percent. */
    public static double spreadPercent(double[] values) {
        Statistics all = new Statistics(values);
        return all.min() > 0 ? (all.max() / all.min() - 1) * 100 : 0;
    }

    /** Returns {edges, counts} of equal bins up to the 98th percentile; the last holds the rest. */
    JSONObject histogram() {
        double low = min();
        double high = Math.max(percentile(98), low * (1 + 1e-6) + 1e-6);
        double width = (high - low) / BINS;
        double[] edges = new double[BINS + 1];
        for (int i = 0; i <= BINS; i++) {
            edges[i] = low + i * width;
        }
        int[] counts = new int[BINS];
        for (double sample : sorted) {
            counts[Math.min((int) ((sample - low) / width), BINS - 1)]++;
        }
        return Json.object()
                .put("edges", Json.array(edges))
                .put("counts", Json.array(counts))
                .build();
    }
}
