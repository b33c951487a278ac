package io.edgecompress.demo.core;

import java.util.Locale;
import org.json.JSONException;
import org.json.JSONObject;

/** Why something did not work, in one line that a person can act on. */
public final class Failure extends Exception {
    /** What kind of thing failed; the names are those of the measurement's schema. */
    public enum Code {
        ARGUMENTS,
        BUNDLE,
        OPERATOR,
        ENGINE,
        MEMORY,
        STORAGE,
        CANCELLED,
        INTERNAL;

        /** Returns the name in result files. */
        public String text() {
            return name().toLowerCase(Locale.ROOT);
        }
    }

    private static final int LONGEST = 500;

    public final Code code;

    public Failure(Code code, String message) {
        super(oneLine(message));
        this.code = code;
    }

    /** Turns whatever was thrown into a Failure. */
    public static Failure of(Throwable thrown) {
        if (thrown instanceof Failure) {
            return (Failure) thrown;
        }
        if (thrown instanceof OutOfMemoryError) {
            return new Failure(Code.MEMORY, "The memory of this device does not suffice.");
        }
        String message = thrown.getMessage();
        String reason = thrown.getClass().getSimpleName() + (message == null ? "" : ": " + message);
        return new Failure(Code.INTERNAL, "The app failed: " + reason);
    }

    /** Returns {code, message}. */
    public JSONObject toJson() {
        try {
            return new JSONObject().put("code", code.text()).put("message", getMessage());
        } catch (JSONException e) {
            throw new IllegalStateException(e);
        }
    }

    static String oneLine(String text) {
        String line = text == null ? "" : text.replaceAll("\\s+", " ").trim();
        if (line.isEmpty()) {
            return "no reason given";
        }
        return line.length() <= LONGEST ? line : line.substring(0, LONGEST) + "...";
    }
}
