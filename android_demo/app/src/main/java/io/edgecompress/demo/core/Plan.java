package io.edgecompress.demo.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;

/** What to measure, and for how long. */
public final class Plan {
    /** Keys that {@link #parse} understands. */
    public static final List<String> KEYS =
            Collections.unmodifiableList(
                    Arrays.asList(
                            "threads", "xnnpack", "warmup", "runs", "min_s", "repeats", "models"));

    private static final int MOST_THREADS = 64;
    private static final int MOST_RUNS = 1_000_000;
    private static final double LONGEST_S = 600;

    public final List<Integer> threads;
    public final List<Boolean> xnnpack;
    /** Inferences before the timed ones. */
    public final int warmup;
    /** Least number of timed samples of one measurement. */
    public final int runs;
    /** Least duration of the timed part of one measurement in seconds. */
    public final double minSeconds;
    /** Parts of one measurement whose medians are compared. */
    public final int repeats;
    /** Kinds or files of the models to run; empty for all. */
    public final Set<String> models;

    public Plan(
            List<Integer> threads,
            List<Boolean> xnnpack,
            int warmup,
            int runs,
            double minSeconds,
            int repeats,
            Set<String> models) {
        this.threads = Collections.unmodifiableList(new ArrayList<>(threads));
        this.xnnpack = Collections.unmodifiableList(new ArrayList<>(xnnpack));
        this.warmup = warmup;
        this.runs = runs;
        this.minSeconds = minSeconds;
        this.repeats = repeats;
        this.models = Collections.unmodifiableSet(new LinkedHashSet<>(models));
    }

    /** Every setting, a second each. */
    public static Plan standard() {
        return new Plan(
                Arrays.asList(1, 2, 4),
                Arrays.asList(true, false),
                10,
                50,
                1,
                5,
                Collections.<String>emptySet());
    }

    /**
     * Reads a plan from texts, as in `threads` = "1,4"; what is left out is as in
     * {@link #standard}.
     */
    public static Plan parse(Map<String, String> options) throws Failure {
        Plan base = standard();
        Set<String> models = new HashSet<>();
        if (options.get("models") != null) {
            models.addAll(split("models", options.get("models")));
        }
        int warmup = whole(options, "warmup", base.warmup, 0, MOST_RUNS);
        int runs = whole(options, "runs", base.runs, 1, MOST_RUNS);
        int repeats = whole(options, "repeats", base.repeats, 1, 1000);
        List<Integer> threads = base.threads;
        if (options.get("threads") != null) {
            threads = new ArrayList<>();
            for (String part : split("threads", options.get("threads"))) {
                threads.add(whole("threads", part, 1, MOST_THREADS));
            }
        }
        List<Boolean> xnnpack = base.xnnpack;
        if (options.get("xnnpack") != null) {
            xnnpack = new ArrayList<>();
            for (String part : split("xnnpack", options.get("xnnpack"))) {
                String word = part.toLowerCase(Locale.ROOT);
                if (!word.equals("on") && !word.equals("off")) {
                    throw bad("xnnpack", "on, off or both", part);
                }
                xnnpack.add(word.equals("on"));
            }
        }
        double seconds = base.minSeconds;
        String text = options.get("min_s");
        if (text != null) {
            try {
                seconds = Double.parseDouble(text.trim());
            } catch (NumberFormatException e) {
                seconds = Double.NaN;
            }
            if (!(seconds >= 0 && seconds <= LONGEST_S)) {
                throw bad("min_s", "a number of seconds from 0 to 600", text);
            }
        }
        return new Plan(threads, xnnpack, warmup, runs, seconds, repeats, models);
    }

    private static List<String> split(String key, String text) throws Failure {
        Set<String> parts = new LinkedHashSet<>();
        for (String part : text.split(",")) {
            if (!part.trim().isEmpty()) {
                parts.add(part.trim());
            }
        }
        if (parts.isEmpty()) {
            throw bad(key, "a list such as 1,4", text);
        }
        return new ArrayList<>(parts);
    }

    private static int whole(
            Map<String, String> options, String key, int otherwise, int least, int most)
            throws Failure {
        String text = options.get(key);
        return text == null ? otherwise : whole(key, text, least, most);
    }

    private static int whole(String key, String text, int least, int most) throws Failure {
        try {
            int value = Integer.parseInt(text.trim());
            if (value >= least && value <= most) {
                return value;
            }
        } catch (NumberFormatException e) {
            // Reported below, like a number out of range.
        }
        throw bad(key, "a whole number from " + least + " to " + most, text);
    }

    private static Failure bad(String key, String rule, String got) {
        return new Failure(
                Failure.Code.ARGUMENTS, key + " must be " + rule + ". Got \"" + got + "\".");
    }
}
