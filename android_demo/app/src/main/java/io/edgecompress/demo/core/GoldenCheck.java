package io.edgecompress.demo.core;

import java.nio.ByteBuffer;
import java.security.MessageDigest;
import org.json.JSONObject;

/**
 * Compares outputs with golden ones.
 *
 * <p>Quantized outputs must be equal where the same kernels of the same version computed them, and
 * may else differ by the bundle's number of steps. Float outputs may differ by tolerance * max(1,
 * |wanted|).
 */
final class GoldenCheck {
    private final Bundle.Model model;
    private final long allowedSteps;
    private final MessageDigest digest = Disk.digest();
    private long checked;
    private long equal;
    private Long maxSteps;
    private Double maxError;
    private boolean withinTolerance = true;
    private int samples;
    private int sameAnswers;

    GoldenCheck(Bundle.Model model, String version, String kernels) {
        this.model = model;
        Bundle.Golden golden = model.golden;
        boolean same = golden.engineVersion.equals(version) && golden.kernels.equals(kernels);
        allowedSteps = same ? 0 : golden.toleranceSteps;
    }

    void add(ByteBuffer[] got, ByteBuffer[] wanted) {
        samples++;
        for (int t = 0; t < got.length; t++) {
            Tensor tensor = model.outputs.get(t);
            compare(tensor, got[t], wanted[t]);
            ByteBuffer view = got[t].duplicate();
            Buffers.rewind(view);
            digest.update(view);
        }
        Tensor.Type type = model.outputs.get(0).type;
        if (largest(type, got[0]) == largest(type, wanted[0])) {
            sameAnswers++;
        }
    }

    private void compare(Tensor tensor, ByteBuffer got, ByteBuffer wanted) {
        int width = tensor.type.bytes;
        for (int at = 0; at < tensor.bytes(); at += width) {
            checked++;
            if (tensor.type == Tensor.Type.FLOAT32) {
                float have = got.getFloat(at);
                float want = wanted.getFloat(at);
                if (Float.floatToRawIntBits(have) == Float.floatToRawIntBits(want)) {
                    equal++;
                }
                // Two NaNs, or the same infinity, agree.
                double error = Float.compare(have, want) == 0 ? 0 : Math.abs((double) have - want);
                double bound = model.golden.tolerance * Math.max(1, Math.abs(want));
                withinTolerance &= error == 0 || error <= bound;
                maxError = maxError == null ? error : Math.max(maxError, error);
            } else {
                long steps = Math.abs(whole(tensor.type, got, at) - whole(tensor.type, wanted, at));
                if (steps == 0) {
                    equal++;
                }
                maxSteps = maxSteps == null ? steps : Math.max(maxSteps, steps);
            }
        }
    }

    private static long whole(Tensor.Type type, ByteBuffer buffer, int at) {
        switch (type) {
            case UINT8:
                return buffer.get(at) & 0xff;
            case INT16:
                return buffer.getShort(at);
            case INT32:
                return buffer.getInt(at);
            case INT64:
                return buffer.getLong(at);
            default:
                return buffer.get(at);
        }
    }

    static int largest(Tensor.Type type, ByteBuffer buffer) {
        int best = 0;
        double most = Double.NEGATIVE_INFINITY;
        for (int i = 0; i * type.bytes < buffer.capacity(); i++) {
            int at = i * type.bytes;
            double value =
                    type == Tensor.Type.FLOAT32 ? buffer.getFloat(at) : whole(type, buffer, at);
            if (value > most) {
                most = value;
                best = i;
            }
        }
        return best;
    }

    boolean passed() {
        return withinTolerance && (maxSteps == null || maxSteps <= allowedSteps);
    }

    Long maxSteps() {
        return maxSteps;
    }

    long allowedSteps() {
        return allowedSteps;
    }

    /** Returns the SHA-256 of all outputs. */
    String outputSha256() {
        return Disk.hex(digest);
    }

    JSONObject toJson() {
        return Json.object()
                .put("checked", checked)
                .put("equal", equal)
                .put("max_steps", maxSteps)
                .put("max_error", maxError)
                .put("passed", passed())
                .put("kernels", model.golden.kernels)
                .put("allowed_steps", maxSteps == null ? null : allowedSteps)
                .put("same_answer", sameAnswers)
                .put("samples", samples)
                .build();
    }
}
