package io.edgecompress.demo.core;

import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.tensorflow.lite.Interpreter;
import org.tensorflow.lite.TensorFlowLite;

/** TensorFlow Lite, or LiteRT through the same classes. */
public final class TfliteEngine implements Engine {
    private static final Pattern OPERATOR = Pattern.compile("opcode '(\\w+)' version '(\\d+)'");
    private static final Pattern NEW_CODE = Pattern.compile("builtin_code out of range: (\\d+)");
    private static final Pattern VERSION = Pattern.compile("(\\d+)\\.(\\d+).*");
    // TensorFlow Lite's XNNPACK runs int8 models without being asked to from 2.10 on; LiteRT, whose
    // numbers began again at 1.0, always has.
    private static final int TENSORFLOW = 2;
    private static final int FIRST_INT8 = 10;
    private static final int LONGEST = 240;

    @Override
    public String name() {
        return "TensorFlow Lite";
    }

    @Override
    public String version() {
        try {
            return TensorFlowLite.runtimeVersion();
        } catch (LinkageError e) {
            return null;
        }
    }

    @Override
    public String api() {
        return "org.tensorflow.lite.Interpreter";
    }

    @Override
    public String kernels(boolean xnnpack) {
        if (!xnnpack) {
            return "built-in";
        }
        String version = version();
        Matcher match = VERSION.matcher(version == null ? "" : version);
        boolean known =
                match.matches()
                        && (Integer.parseInt(match.group(1)) != TENSORFLOW
                                || Integer.parseInt(match.group(2)) >= FIRST_INT8);
        return known ? "XNNPACK" : null;
    }

    @Override
    public Session open(ByteBuffer model, int threads, boolean xnnpack) throws Failure {
        Interpreter interpreter = null;
        try {
            Interpreter.Options options = new Interpreter.Options();
            options.setNumThreads(threads);
            options.setUseXNNPACK(xnnpack);
            interpreter = new Interpreter(model, options);
            interpreter.allocateTensors();
            return new TfliteSession(interpreter);
        } catch (LinkageError e) {
            throw new Failure(
                    Failure.Code.ENGINE,
                    "The library of the runtime does not load on this device: " + e.getMessage());
        } catch (RuntimeException e) {
            if (interpreter != null) {
                interpreter.close();
            }
            throw refused(e);
        }
    }

    private Failure refused(RuntimeException thrown) {
        String reason = String.valueOf(thrown.getMessage());
        Matcher match = OPERATOR.matcher(reason);
        if (match.find()) {
            return new Failure(
                    Failure.Code.OPERATOR,
                    "Operator " + match.group(1) + " version " + match.group(2) + missing());
        }
        match = NEW_CODE.matcher(reason);
        if (match.find()) {
            return new Failure(
                    Failure.Code.OPERATOR, "The operator of code " + match.group(1) + missing());
        }
        if (reason.contains("unresolved custom op")) {
            return new Failure(
                    Failure.Code.OPERATOR,
                    "A custom operator needs a runtime that registers it; " + name() + " "
                            + version() + " does not.");
        }
        String line = Failure.oneLine(reason);
        line = line.length() > LONGEST ? line.substring(0, LONGEST) + "..." : line;
        return new Failure(Failure.Code.ENGINE, name() + " refused the model: " + line);
    }

    private String missing() {
        return " is not in " + name() + " " + version() + " of this app; it needs a newer LiteRT.";
    }

    private final class TfliteSession implements Session {
        private final Interpreter interpreter;
        private final Map<Integer, Object> results = new HashMap<>();

        TfliteSession(Interpreter interpreter) {
            this.interpreter = interpreter;
        }

        @Override
        public int inputs() {
            return interpreter.getInputTensorCount();
        }

        @Override
        public int inputBytes(int index) {
            return interpreter.getInputTensor(index).numBytes();
        }

        @Override
        public int outputs() {
            return interpreter.getOutputTensorCount();
        }

        @Override
        public int outputBytes(int index) {
            return interpreter.getOutputTensor(index).numBytes();
        }

        @Override
        public void run(ByteBuffer[] inputs, ByteBuffer[] outputs) throws Failure {
            for (ByteBuffer input : inputs) {
                Buffers.rewind(input);
            }
            for (int i = 0; i < outputs.length; i++) {
                Buffers.rewind(outputs[i]);
                results.put(i, outputs[i]);
            }
            try {
                interpreter.runForMultipleInputsOutputs(inputs, results);
            } catch (RuntimeException e) {
                throw refused(e);
            }
        }

        @Override
        public void reset() {
            interpreter.resetVariableTensors();
        }

        @Override
        public void close() {
            interpreter.close();
        }
    }
}
