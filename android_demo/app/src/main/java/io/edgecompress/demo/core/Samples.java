package io.edgecompress.demo.core;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;

/** What is fed to a model: its golden inputs, or random values of a fixed seed. */
final class Samples {
    // So many are kept in memory; the others are checked, but not timed.
    private static final long MOST_BYTES = 64L << 20;
    private static final int SEED = 0;

    /** One array for each sample, with one buffer for each input. */
    final List<ByteBuffer[]> inputs;
    /** The outputs that belong to them; null for random inputs. */
    final List<ByteBuffer[]> outputs;

    private Samples(List<ByteBuffer[]> inputs, List<ByteBuffer[]> outputs) {
        this.inputs = inputs;
        this.outputs = outputs;
    }

    static Samples of(Bundle bundle, Bundle.Model model, Long availableKb) throws Failure {
        if (model.golden == null) {
            return random(model);
        }
        long bytes = 0;
        for (Tensor tensor : model.inputs) {
            bytes += (long) tensor.bytes() * model.golden.samples;
        }
        for (Tensor tensor : model.outputs) {
            bytes += (long) tensor.bytes() * model.golden.samples;
        }
        if (bytes > MOST_BYTES || (availableKb != null && bytes > availableKb * 1024)) {
            throw new Failure(
                    Failure.Code.MEMORY,
                    model.file + ": the golden files have " + (bytes >> 20)
                            + " MiB, more than the " + (MOST_BYTES >> 20)
                            + " MiB or the memory there is for them. Export fewer samples.");
        }
        return new Samples(
                read(bundle, model, model.inputs, model.golden.inputs),
                read(bundle, model, model.outputs, model.golden.outputs));
    }

    private static List<ByteBuffer[]> read(
            Bundle bundle, Bundle.Model model, List<Tensor> tensors, List<String> files)
            throws Failure {
        int count = model.golden.samples;
        List<ByteBuffer[]> samples = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            samples.add(new ByteBuffer[tensors.size()]);
        }
        for (int t = 0; t < tensors.size(); t++) {
            int bytes = tensors.get(t).bytes();
            String path = files.get(t);
            long wanted = (long) bytes * count;
            ByteBuffer content =
                    ModelFile.checked(bundle, path, wanted, model.golden.sha256.get(path));
            for (int i = 0; i < count; i++) {
                samples.get(i)[t] = Buffers.slice(content, i * bytes, bytes);
            }
        }
        return samples;
    }

    private static Samples random(Bundle.Model model) {
        Random random = new Random(SEED);
        ByteBuffer[] inputs = new ByteBuffer[model.inputs.size()];
        for (int t = 0; t < inputs.length; t++) {
            Tensor tensor = model.inputs.get(t);
            ByteBuffer buffer = Buffers.direct(tensor.bytes());
            while (buffer.hasRemaining()) {
                switch (tensor.type) {
                    case FLOAT32:
                        buffer.putFloat(2 * random.nextFloat() - 1);
                        break;
                    case INT8:
                    case UINT8:
                        buffer.put((byte) random.nextInt());
                        break;
                    case INT16:
                        buffer.putShort((short) random.nextInt());
                        break;
                    default:
                        // Whole numbers are mostly indices: 0 is one that always exists.
                        buffer.put((byte) 0);
                }
            }
            Buffers.rewind(buffer);
            inputs[t] = buffer;
        }
        List<ByteBuffer[]> one = new ArrayList<>();
        one.add(inputs);
        return new Samples(one, null);
    }

    /** Returns buffers for the outputs of one sample. */
    static ByteBuffer[] outputs(Bundle.Model model) {
        ByteBuffer[] buffers = new ByteBuffer[model.outputs.size()];
        for (int t = 0; t < buffers.length; t++) {
            buffers[t] = Buffers.direct(model.outputs.get(t).bytes());
        }
        return buffers;
    }
}
