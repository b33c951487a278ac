package io.edgecompress.demo.core;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What /proc and /sys tell, on Android and Linux alike; null where they are denied. */
public final class LinuxFiles {
    private static final long LARGEST = 1 << 20;

    private LinuxFiles() {}

    /** Returns a file's text, or null. */
    public static String read(String path) {
        try {
            // These files have no length, so it cannot be asked for.
            String text = new String(Disk.read(new File(path), LARGEST), StandardCharsets.UTF_8);
            return text.trim().isEmpty() ? null : text.trim();
        } catch (IOException | SecurityException e) {
            return null;
        }
    }

    /** Returns the value of a line "Key: 123 kB" of /proc/self/status, or null. */
    static Double statusKb(String key) {
        String status = read("/proc/self/status");
        if (status == null) {
            return null;
        }
        for (String line : status.split("\n")) {
            if (line.startsWith(key + ":")) {
                try {
                    return Double.valueOf(line.replaceAll("[^0-9]", ""));
                } catch (NumberFormatException e) {
                    return null;
                }
            }
        }
        return null;
    }

    /** Returns the 1-minute load average, or null. */
    public static Double load() {
        String text = read("/proc/loadavg");
        try {
            return text == null ? null : Double.valueOf(text.split(" ")[0]);
        } catch (NumberFormatException e) {
            return null;
        }
    }

    /** Returns the governor of CPU 0, or null. */
    public static String governor() {
        return read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    }

    /** Returns the features of the CPU as in /proc/cpuinfo, or null. */
    public static List<String> cpuFeatures() {
        String text = read("/proc/cpuinfo");
        if (text == null) {
            return null;
        }
        for (String line : text.split("\n")) {
            if (line.startsWith("Features") || line.startsWith("flags")) {
                int colon = line.indexOf(':');
                if (colon >= 0) {
                    return Arrays.asList(line.substring(colon + 1).trim().split("\\s+"));
                }
            }
        }
        return null;
    }

    /** Returns the largest frequency of each core in kHz; null where a core does not tell. */
    public static List<Long> maxFrequencies(int cores) {
        List<Long> frequencies = new ArrayList<>();
        for (int i = 0; i < cores; i++) {
            String path = "/sys/devices/system/cpu/cpu" + i + "/cpufreq/cpuinfo_max_freq";
            String text = read(path);
            try {
                frequencies.add(text == null ? null : Long.valueOf(text));
            } catch (NumberFormatException e) {
                frequencies.add(null);
            }
        }
        return frequencies;
    }

    /** Returns a line of /proc/meminfo in KiB, or null. */
    public static Long meminfoKb(String key) {
        String text = read("/proc/meminfo");
        if (text == null) {
            return null;
        }
        for (String line : text.split("\n")) {
            if (line.startsWith(key + ":")) {
                try {
                    return Long.valueOf(line.replaceAll("[^0-9]", ""));
                } catch (NumberFormatException e) {
                    return null;
                }
            }
        }
        return null;
    }
}
