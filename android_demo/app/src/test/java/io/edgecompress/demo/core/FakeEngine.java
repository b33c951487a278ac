package io.edgecompress.demo.core;

import java.nio.ByteBuffer;

/** An engine that takes as long as it is told. */
public class FakeEngine implements Engine {
    /** A clock that moves when the engine says so. */
    public static final class Ticker implements Clock {
        private long now = 1_000_000_000L;

        void advance(double nanos) {
            now += Math.round(nanos);
        }

        @Override
        public long nanos() {
            return now;
        }

        @Override
        public long millis() {
            return 1_700_000_000_000L;
        }
    }

    public double loadUs;
    /** Time of each inference in microseconds; the last one repeats. */
    public double[] timesUs = {100};
    public RuntimeException failure;

    private final Ticker ticker;
    private final int inputBytes;

    public FakeEngine(Ticker ticker, int inputBytes) {
        this.ticker = ticker;
        this.inputBytes = inputBytes;
    }

    @Override
    public String name() {
        return "fake";
    }

    @Override
    public String version() {
        return "1.0";
    }

    @Override
    public String api() {
        return "none";
    }

    @Override
    public String kernels(boolean xnnpack) {
        return null;
    }

    @Override
    public Session open(ByteBuffer model, int threads, boolean xnnpack) {
        ticker.advance(1000 * loadUs);
        return new Session() {
            private int count;

            @Override
            public int inputs() {
                return 1;
            }

            @Override
            public int inputBytes(int index) {
                return inputBytes;
            }

            @Override
            public int outputs() {
                return 1;
            }

            @Override
            public int outputBytes(int index) {
                return 10;
            }

            @Override
            public void run(ByteBuffer[] inputs, ByteBuffer[] outputs) {
                if (failure != null) {
                    throw failure;
                }
                ticker.advance(1000 * timesUs[Math.min(count++, timesUs.length - 1)]);
            }

            @Override
            public void reset() {}

            @Override
            public void close() {}
        };
    }
}
