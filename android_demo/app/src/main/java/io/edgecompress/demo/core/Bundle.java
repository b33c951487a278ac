package io.edgecompress.demo.core;

import java.io.File;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/** A bundle.json, read and checked; the files it names have not been opened yet. */
public final class Bundle {
    public static final String SCHEMA = "edgecompress.bundle/1";
    public static final String FILE = "bundle.json";

    /** Folder that holds bundle.json. */
    public final File folder;
    public final String name;
    /** Name of the target profile, or null. */
    public final String target;
    /** Of bundle.json. */
    public final String sha256;
    public final List<Model> models;
    /** Names of the classes, or null. */
    public final List<String> labels;
    public final Budgets budgets;

    Bundle(
            File folder,
            String name,
            String target,
            String sha256,
            List<Model> models,
            List<String> labels,
            Budgets budgets) {
        this.folder = folder;
        this.name = name;
        this.target = target;
        this.sha256 = sha256;
        this.models = Collections.unmodifiableList(models);
        this.labels = labels == null ? null : Collections.unmodifiableList(labels);
        this.budgets = budgets;
    }

    /** Returns the bytes of all models. */
    public long bytes() {
        long bytes = 0;
        for (Model model : models) {
            bytes += model.bytes;
        }
        return bytes;
    }

    /** Which runtime a file needs. */
    public enum Runtime {
        LITERT("LiteRT (TensorFlow Lite)"),
        LCE("Larq Compute Engine"),
        TFLM("TensorFlow Lite Micro");

        public final String title;

        Runtime(String title) {
            this.title = title;
        }
    }

    /** One .tflite file of the bundle. */
    public static final class Model {
        public final String file;
        public final String kind;
        public final String sha256;
        public final long bytes;
        public final Runtime runtime;
        public final List<Tensor> inputs;
        public final List<Tensor> outputs;
        /** Golden outputs, or null. */
        public final Golden golden;

        Model(
                String file,
                String kind,
                String sha256,
                long bytes,
                Runtime runtime,
                List<Tensor> inputs,
                List<Tensor> outputs,
                Golden golden) {
            this.file = file;
            this.kind = kind;
            this.sha256 = sha256;
            this.bytes = bytes;
            this.runtime = runtime;
            this.inputs = Collections.unmodifiableList(inputs);
            this.outputs = Collections.unmodifiableList(outputs);
            this.golden = golden;
        }
    }

    /** Inputs and the outputs that an engine gave for them. */
    public static final class Golden {
        public final int samples;
        public final List<String> inputs;
        public final List<String> outputs;
        public final Map<String, String> sha256;
        public final String engine;
        public final String engineVersion;
        public final String kernels;
        /** Steps by which quantized outputs of other kernels may differ. */
        public final int toleranceSteps;
        /** Bound of float outputs, relative to max(1, |value|); 0 where the bundle has none. */
        public final double tolerance;

        Golden(
                int samples,
                List<String> inputs,
                List<String> outputs,
                Map<String, String> sha256,
                String engine,
                String engineVersion,
                String kernels,
                int toleranceSteps,
                double tolerance) {
            this.samples = samples;
            this.inputs = Collections.unmodifiableList(inputs);
            this.outputs = Collections.unmodifiableList(outputs);
            this.sha256 = Collections.unmodifiableMap(sha256);
            this.engine = engine;
            this.engineVersion = engineVersion;
            this.kernels = kernels;
            this.toleranceSteps = toleranceSteps;
            this.tolerance = tolerance;
        }
    }

    /** The limits; null where there is none. */
    public static final class Budgets {
        public final Double maxLatencyUs;
        public final Double maxFileSize;
        public final Double maxRam;
        public final Double minAccuracy;

        Budgets(Double maxLatencyUs, Double maxFileSize, Double maxRam, Double minAccuracy) {
            this.maxLatencyUs = maxLatencyUs;
            this.maxFileSize = maxFileSize;
            this.maxRam = maxRam;
            this.minAccuracy = minAccuracy;
        }
    }
}
