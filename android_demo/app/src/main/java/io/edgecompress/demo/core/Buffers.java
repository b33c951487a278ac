package io.edgecompress.demo.core;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** ByteBuffers. The methods of Buffer, not of ByteBuffer: the latter are missing below API 28. */
final class Buffers {
    private Buffers() {}

    static void rewind(Buffer buffer) {
        buffer.rewind();
    }

    static ByteBuffer direct(int bytes) {
        return ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
    }

    /** Returns a direct buffer with `bytes` bytes of `source` from `offset` on. */
    static ByteBuffer slice(ByteBuffer source, int offset, int bytes) {
        ByteBuffer view = source.duplicate();
        Buffer bounds = view;
        bounds.limit(offset + bytes);
        bounds.position(offset);
        ByteBuffer copy = direct(bytes);
        copy.put(view);
        rewind(copy);
        return copy;
    }
}
