package io.edgecompress.demo.core;

import java.util.Locale;

/** Numbers as people read them. */
public final class Format {
    private Format() {}

    /** Returns a time: three digits, in us, ms or s. */
    public static String time(double microseconds) {
        if (microseconds >= 1e6) {
            return digits(microseconds / 1e6) + " s";
        }
        if (microseconds >= 1e3) {
            return digits(microseconds / 1e3) + " ms";
        }
        return digits(microseconds) + " µs";
    }

    /** Returns a size in B, KiB, MiB or GiB. */
    public static String size(double bytes) {
        String[] units = {"B", "KiB", "MiB", "GiB"};
        int unit = 0;
        while (bytes >= 1024 && unit < units.length - 1) {
            bytes /= 1024;
            unit++;
        }
        return (unit == 0 ? String.format(Locale.ROOT, "%.0f", bytes) : digits(bytes))
                + " "
                + units[unit];
    }

    public static String percent(double percent) {
        return String.format(Locale.ROOT, percent < 10 ? "%.1f %%" : "%.0f %%", percent);
    }

    /** Returns a span of time: about so many seconds or minutes. */
    public static String span(double seconds) {
        if (seconds < 90) {
            return Math.max(1, Math.round(seconds)) + " s";
        }
        return Math.round(seconds / 60) + " min";
    }

    private static String digits(double value) {
        String format = value >= 99.95 ? "%.0f" : value >= 9.995 ? "%.1f" : "%.2f";
        return String.format(Locale.ROOT, format, value);
    }
}
