package io.edgecompress.demo.core;

import java.util.Collection;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** Writing and reading of JSON without surprises: null is null, and NaN never gets into a file. */
public final class Json {
    private Json() {}

    /** Builds an object; keys keep no order. */
    public static final class Builder {
        private final JSONObject object = new JSONObject();

        /** Adds a value; null, NaN and infinity become null. */
        public Builder put(String key, Object value) {
            try {
                object.put(key, orNull(value));
            } catch (JSONException e) {
                throw new IllegalStateException(e);
            }
            return this;
        }

        public JSONObject build() {
            return object;
        }
    }

    public static Builder object() {
        return new Builder();
    }

    static Object orNull(Object value) {
        if (value == null) {
            return JSONObject.NULL;
        }
        if (value instanceof Double) {
            double number = (Double) value;
            return Double.isNaN(number) || Double.isInfinite(number) ? JSONObject.NULL : value;
        }
        return value;
    }

    public static JSONArray array(double[] values) {
        JSONArray array = new JSONArray();
        for (double value : values) {
            array.put(orNull(value));
        }
        return array;
    }

    public static JSONArray array(int[] values) {
        JSONArray array = new JSONArray();
        for (int value : values) {
            array.put(value);
        }
        return array;
    }

    public static JSONArray array(Collection<?> values) {
        JSONArray array = new JSONArray();
        for (Object value : values) {
            array.put(orNull(value));
        }
        return array;
    }

    /** Returns a number, or null where there is none. */
    public static Double number(JSONObject object, String key) {
        Object value = object == null ? null : object.opt(key);
        return value instanceof Number ? Double.valueOf(((Number) value).doubleValue()) : null;
    }

    /** Returns a text, or null where there is none. */
    public static String text(JSONObject object, String key) {
        Object value = object == null ? null : object.opt(key);
        return value instanceof String ? (String) value : null;
    }
}
