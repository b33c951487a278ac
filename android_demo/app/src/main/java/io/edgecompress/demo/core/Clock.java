package io.edgecompress.demo.core;

import java.text.SimpleDateFormat;
import java.util.Date;
import java.util.Locale;
import java.util.TimeZone;

/** Where time comes from, so that tests can bring their own. */
public interface Clock {
    /** Returns nanoseconds from an arbitrary start. */
    long nanos();

    /** Returns milliseconds since 1970, UTC. */
    long millis();

    /** The system's clocks. */
    Clock SYSTEM =
            new Clock() {
                @Override
                public long nanos() {
                    return System.nanoTime();
                }

                @Override
                public long millis() {
                    return System.currentTimeMillis();
                }
            };

    /** Returns the time in UTC, as 2025-01-31T12:00:00Z. */
    static String utc(Clock clock) {
        SimpleDateFormat format = new SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT);
        format.setTimeZone(TimeZone.getTimeZone("UTC"));
        return format.format(new Date(clock.millis()));
    }
}
