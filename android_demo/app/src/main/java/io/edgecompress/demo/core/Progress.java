package io.edgecompress.demo.core;

/** How far a run has come. */
public final class Progress {
    /** Number of the measurement, from 0. */
    public final int step;
    public final int steps;
    /** Kind of the model. */
    public final String kind;
    public final int threads;
    public final boolean xnnpack;
    /** Share of the whole run, 0 to 1. */
    public final double done;

    Progress(int step, int steps, String kind, int threads, boolean xnnpack, double part) {
        this.step = step;
        this.steps = steps;
        this.kind = kind;
        this.threads = threads;
        this.xnnpack = xnnpack;
        this.done = Math.min(1, (step + Math.min(1, part)) / steps);
    }

    /** Hears of progress, on the thread that measures. */
    public interface Listener {
        void onProgress(Progress progress);
    }
}
