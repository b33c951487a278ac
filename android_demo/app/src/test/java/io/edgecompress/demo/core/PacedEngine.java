package io.edgecompress.demo.core;

import java.nio.ByteBuffer;
import java.util.Random;

/** The real engine's outputs in made-up times, so that pictures of results are always the same. */
public final class PacedEngine implements Engine {
    private final Engine real = new TfliteEngine();
    private final FakeEngine.Ticker ticker;
    private final Random random = new Random(7);

    public PacedEngine(FakeEngine.Ticker ticker) {
        this.ticker = ticker;
    }

    @Override
    public String name() {
        return real.name();
    }

    @Override
    public String version() {
        return "2.16.1";
    }

    @Override
    public String api() {
        return real.api();
    }

    @Override
    public String kernels(boolean xnnpack) {
        return xnnpack ? "XNNPACK" : "built-in";
    }

    private double pace(int modelBytes, int threads, boolean xnnpack) {
        double time = 30 + modelBytes / 80.0;
        return time * (xnnpack ? 1 : 3.5) * (threads == 1 ? 1 : threads == 2 ? 0.8 : 0.9);
    }

    @Override
    public Session open(ByteBuffer model, int threads, boolean xnnpack) throws Failure {
        // One thread: the others only wait for each other on a busy computer.
        Session session = real.open(model, 1, xnnpack);
        double pace = pace(model.capacity(), threads, xnnpack);
        ticker.advance(1000 * (800 + 3 * pace));
        return new Session() {
            @Override
            public int inputs() {
                return session.inputs();
            }

            @Override
            public int inputBytes(int index) {
                return session.inputBytes(index);
            }

            @Override
            public int outputs() {
                return session.outputs();
            }

            @Override
            public int outputBytes(int index) {
                return session.outputBytes(index);
            }

            @Override
            public void run(ByteBuffer[] inputs, ByteBuffer[] outputs) throws Failure {
                session.run(inputs, outputs);
                double noise = 1 + 0.015 * Math.abs(random.nextGaussian());
                double outlier = random.nextInt(40) == 0 ? 1 + 0.1 * random.nextDouble() : 1;
                ticker.advance(1000 * pace * noise * outlier);
            }

            @Override
            public void reset() {
                session.reset();
            }

            @Override
            public void close() {
                session.close();
            }
        };
    }
}
