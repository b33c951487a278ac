package io.edgecompress.demo.core;

import java.io.Closeable;
import java.nio.ByteBuffer;

/** What runs models. */
public interface Engine {
    /** Returns its name, as in result files. */
    String name();

    /** Returns its version, or null where it does not tell. */
    String version();

    /** Returns the interface it is driven through. */
    String api();

    /** Returns which kernels compute with this setting, or null where the engine does not tell. */
    String kernels(boolean xnnpack);

    /**
     * Loads a model and allocates its tensors.
     *
     * @param model A direct buffer, which must stay unchanged until the session is closed.
     */
    Session open(ByteBuffer model, int threads, boolean xnnpack) throws Failure;

    /** A loaded model. Used by one thread at a time. */
    interface Session extends Closeable {
        int inputs();

        int inputBytes(int index);

        int outputs();

        int outputBytes(int index);

        /** Runs one inference on direct buffers, one for each input and output. */
        void run(ByteBuffer[] inputs, ByteBuffer[] outputs) throws Failure;

        /** Resets the states of recurrent models. */
        void reset();

        @Override
        void close();
    }
}
