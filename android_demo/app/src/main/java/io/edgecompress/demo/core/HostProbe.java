package io.edgecompress.demo.core;

import org.json.JSONObject;

/** What Linux tells of a computer. */
public final class HostProbe implements Probe {
    @Override
    public JSONObject device() {
        int cores = Runtime.getRuntime().availableProcessors();
        return Json.object()
                .put("manufacturer", null)
                .put("model", System.getProperty("os.name"))
                .put("soc", null)
                .put("abi", System.getProperty("os.arch"))
                .put("android", null)
                .put("sdk", null)
                .put("build_fingerprint", null)
                .put("cpu_features", list(LinuxFiles.cpuFeatures()))
                .put("cores", cores)
                .put("max_freq_khz", list(LinuxFiles.maxFrequencies(cores)))
                .put("ram_kb", LinuxFiles.meminfoKb("MemTotal"))
                .build();
    }

    private static Object list(java.util.List<?> values) {
        return values == null ? null : Json.array(values);
    }

    @Override
    public Snapshot snapshot() {
        Snapshot snapshot = new Snapshot();
        snapshot.governor = LinuxFiles.governor();
        snapshot.load = LinuxFiles.load();
        snapshot.availableKb = LinuxFiles.meminfoKb("MemAvailable");
        return snapshot;
    }
}
