package io.edgecompress.demo.core;

/** An input or output of a model, as the bundle describes it. */
public final class Tensor {
    /** Element types of the bundle's schema. */
    public enum Type {
        FLOAT32(4),
        INT8(1),
        UINT8(1),
        INT16(2),
        INT32(4),
        INT64(8),
        BOOL(1);

        public final int bytes;

        Type(int bytes) {
            this.bytes = bytes;
        }
    }

    public final String name;
    public final Type type;
    /** Real value of one step; null for a tensor that is not quantized. */
    public final Double scale;
    public final Integer zeroPoint;
    private final int[] shape;

    Tensor(String name, int[] shape, Type type, Double scale, Integer zeroPoint) {
        this.name = name;
        this.shape = shape.clone();
        this.type = type;
        this.scale = scale;
        this.zeroPoint = zeroPoint;
    }

    /** Returns the shape with the leading 1 of the batch. */
    public int[] shape() {
        return shape.clone();
    }

    /** Returns the size in bytes; at most Integer.MAX_VALUE, which the reader checks. */
    public int bytes() {
        return (int) bytes(shape, type);
    }

    static long bytes(int[] shape, Type type) {
        long bytes = type.bytes;
        for (int n : shape) {
            bytes *= n;
            if (bytes > Integer.MAX_VALUE) {
                return Long.MAX_VALUE;
            }
        }
        return bytes;
    }
}
