package io.edgecompress.demo.core;

import java.io.Closeable;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** An image classifier of a bundle, loaded and ready for single pictures. */
public final class LiveModel implements Closeable {
    private static final int LARGEST_SIDE = 512;
    private static final int WARMUP = 5;

    /** What the model says. */
    public static final class Answer {
        /** Places of the classes, best first. */
        public final List<Integer> order;
        /** The outputs as real values, by class. */
        public final float[] scores;
        public final double microseconds;

        Answer(List<Integer> order, float[] scores, double microseconds) {
            this.order = order;
            this.scores = scores;
            this.microseconds = microseconds;
        }
    }

    public final Bundle bundle;
    public final Bundle.Model model;
    public final int height;
    public final int width;

    private final Engine.Session session;
    private final Clock clock;
    private final int channels;
    private final ByteBuffer[] input;
    private final ByteBuffer[] outputs;

    private LiveModel(
            Bundle bundle, Bundle.Model model, Engine.Session session, Clock clock) {
        this.bundle = bundle;
        this.model = model;
        this.session = session;
        this.clock = clock;
        int[] shape = model.inputs.get(0).shape();
        height = shape[1];
        width = shape[2];
        channels = shape[3];
        input = new ByteBuffer[] {Buffers.direct(model.inputs.get(0).bytes())};
        outputs = Samples.outputs(model);
    }

    /** Whether a model takes one picture and gives scores. */
    static boolean fits(Bundle.Model model) {
        if (model.runtime != Bundle.Runtime.LITERT || model.inputs.size() != 1) {
            return false;
        }
        Tensor tensor = model.inputs.get(0);
        int[] shape = tensor.shape();
        boolean picture =
                shape.length == 4
                        && shape[0] == 1
                        && shape[1] >= 8
                        && shape[1] <= LARGEST_SIDE
                        && shape[2] >= 8
                        && shape[2] <= LARGEST_SIDE
                        && (shape[3] == 1 || shape[3] == 3);
        boolean readable = tensor.type == Tensor.Type.FLOAT32 || isQuantized(tensor);
        Tensor scores = model.outputs.get(0);
        return picture
                && readable
                && (scores.type == Tensor.Type.FLOAT32 || isQuantized(scores));
    }

    private static boolean isQuantized(Tensor tensor) {
        boolean narrow = tensor.type == Tensor.Type.INT8 || tensor.type == Tensor.Type.UINT8;
        return narrow && tensor.scale != null;
    }

    /** Returns the model to draw for: the first quantized classifier, else a float one, or null. */
    public static Bundle.Model choose(Bundle bundle) {
        Bundle.Model chosen = null;
        for (Bundle.Model model : bundle.models) {
            if (fits(model)) {
                if (isQuantized(model.inputs.get(0))) {
                    return model;
                }
                chosen = chosen == null ? model : chosen;
            }
        }
        return chosen;
    }

    /** Loads the bundle's classifier on one thread, and warms it up. */
    public static LiveModel open(Engine engine, Clock clock, Bundle bundle) throws Failure {
        Bundle.Model model = choose(bundle);
        if (model == null) {
            throw new Failure(
                    Failure.Code.BUNDLE,
                    "The bundle " + bundle.name + " has no classifier of one picture.");
        }
        ModelFile file = ModelFile.open(bundle, model, null);
        Engine.Session session = engine.open(file.content, 1, true);
        LiveModel live = new LiveModel(bundle, model, session, clock);
        try {
            if (session.inputs() != 1
                    || session.inputBytes(0) != live.input[0].capacity()
                    || session.outputs() != live.outputs.length
                    || session.outputBytes(0) != live.outputs[0].capacity()) {
                throw new Failure(
                        Failure.Code.BUNDLE, model.file + " has other tensors than bundle.json says.");
            }
            for (int i = 0; i < WARMUP; i++) {
                session.run(live.input, live.outputs);
            }
            return live;
        } catch (Failure e) {
            session.close();
            throw e;
        }
    }

    /** Whether the classes are digits or letters, which are lines and leave a margin. */
    public boolean isWriting() {
        if (bundle.labels == null) {
            return true;
        }
        for (String label : bundle.labels) {
            if (label.length() > 1) {
                return false;
            }
        }
        return true;
    }

    /** Returns the name of a class. */
    public String label(int index) {
        boolean named = bundle.labels != null && index < bundle.labels.size();
        return named ? bundle.labels.get(index) : "class " + index;
    }

    /** Returns the picture that the model sees of a drawing: ink from 0 to 1. */
    public float[] picture(Drawing drawing) {
        boolean writing = isWriting();
        return drawing.picture(height, width, writing ? 0.64f : 0.9f, !writing);
    }

    /** Classifies a picture of ink from 0 to 1. */
    public Answer classify(float[] picture) throws Failure {
        encode(picture);
        long start = clock.nanos();
        session.run(input, outputs);
        double microseconds = (clock.nanos() - start) / 1e3;
        float[] scores = decode();
        List<Integer> order = new ArrayList<>();
        for (int i = 0; i < scores.length; i++) {
            order.add(i);
        }
        Collections.sort(order, (a, b) -> Float.compare(scores[b], scores[a]));
        return new Answer(order, scores, microseconds);
    }

    private void encode(float[] picture) {
        Tensor tensor = model.inputs.get(0);
        ByteBuffer buffer = input[0];
        Buffers.rewind(buffer);
        boolean signed = tensor.type == Tensor.Type.INT8;
        int least = signed ? -128 : 0;
        for (float ink : picture) {
            for (int channel = 0; channel < channels; channel++) {
                if (tensor.type == Tensor.Type.FLOAT32) {
                    buffer.putFloat(ink);
                } else {
                    // The range of the codes is the range of the training images: all of it is used.
                    buffer.put((byte) (least + Math.round(255 * ink)));
                }
            }
        }
    }

    private float[] decode() {
        Tensor tensor = model.outputs.get(0);
        ByteBuffer buffer = outputs[0];
        float[] scores = new float[tensor.bytes() / tensor.type.bytes];
        for (int i = 0; i < scores.length; i++) {
            if (tensor.type == Tensor.Type.FLOAT32) {
                scores[i] = buffer.getFloat(4 * i);
            } else {
                int code = buffer.get(i);
                code = tensor.type == Tensor.Type.UINT8 ? code & 0xff : code;
                scores[i] = (float) (tensor.scale * (code - tensor.zeroPoint));
            }
        }
        return scores;
    }

    @Override
    public void close() {
        session.close();
    }
}
