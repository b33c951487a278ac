package io.edgecompress.demo;

import android.app.ActivityManager;
import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.os.BatteryManager;
import android.os.Build;
import android.os.PowerManager;
import io.edgecompress.demo.core.Json;
import io.edgecompress.demo.core.LinuxFiles;
import io.edgecompress.demo.core.Probe;
import org.json.JSONObject;

/** What Android tells of the phone; what it denies is null. */
final class PhoneProbe implements Probe {
    private final Context context;

    PhoneProbe(Context context) {
        this.context = context;
    }

    @Override
    public JSONObject device() {
        int cores = Runtime.getRuntime().availableProcessors();
        java.util.List<String> features = LinuxFiles.cpuFeatures();
        ActivityManager.MemoryInfo memory = memory();
        return Json.object()
                .put("manufacturer", known(Build.MANUFACTURER))
                .put("model", known(Build.MODEL))
                .put("soc", soc())
                .put("abi", abi())
                .put("android", known(Build.VERSION.RELEASE))
                .put("sdk", Build.VERSION.SDK_INT)
                .put("build_fingerprint", known(Build.FINGERPRINT))
                .put("cpu_features", features == null ? null : Json.array(features))
                .put("cores", cores)
                .put("max_freq_khz", Json.array(LinuxFiles.maxFrequencies(cores)))
                .put("ram_kb", memory == null ? null : memory.totalMem / 1024)
                .build();
    }

    @Override
    public Snapshot snapshot() {
        Snapshot snapshot = new Snapshot();
        PowerManager power = (PowerManager) context.getSystemService(Context.POWER_SERVICE);
        if (power != null) {
            snapshot.powerSave = power.isPowerSaveMode();
            snapshot.thermal = thermal(power);
            snapshot.thermalHeadroom = headroom(power);
        }
        battery(snapshot);
        snapshot.governor = LinuxFiles.governor();
        snapshot.load = LinuxFiles.load();
        ActivityManager.MemoryInfo memory = memory();
        snapshot.availableKb = memory == null ? null : Long.valueOf(memory.availMem / 1024);
        return snapshot;
    }

    /** The ABI this process runs in, which may not be the phone's first. */
    private static String abi() {
        String[] abis =
                android.os.Process.is64Bit()
                        ? Build.SUPPORTED_64_BIT_ABIS
                        : Build.SUPPORTED_32_BIT_ABIS;
        return abis.length > 0 ? known(abis[0]) : null;
    }

    private static String soc() {
        if (Build.VERSION.SDK_INT >= 31) {
            String maker = known(Build.SOC_MANUFACTURER);
            String model = known(Build.SOC_MODEL);
            if (model != null) {
                return maker == null ? model : maker + " " + model;
            }
        }
        return null;
    }

    private static Integer thermal(PowerManager power) {
        return Build.VERSION.SDK_INT >= 29 ? Integer.valueOf(power.getCurrentThermalStatus()) : null;
    }

    private static Double headroom(PowerManager power) {
        if (Build.VERSION.SDK_INT < 30) {
            return null;
        }
        // NaN where the phone has no forecast, or was asked less than a second ago.
        float headroom = power.getThermalHeadroom(0);
        return Float.isNaN(headroom) ? null : Double.valueOf(headroom);
    }

    private void battery(Snapshot snapshot) {
        Intent status;
        try {
            IntentFilter filter = new IntentFilter(Intent.ACTION_BATTERY_CHANGED);
            status = context.registerReceiver(null, filter);
        } catch (RuntimeException e) {
            return;
        }
        if (status == null) {
            return;
        }
        int level = status.getIntExtra(BatteryManager.EXTRA_LEVEL, -1);
        int scale = status.getIntExtra(BatteryManager.EXTRA_SCALE, -1);
        if (level >= 0 && scale > 0) {
            snapshot.battery = level / (double) scale;
        }
        int temperature = status.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, Integer.MIN_VALUE);
        if (temperature != Integer.MIN_VALUE) {
            snapshot.batteryTemperatureC = temperature / 10.0;
        }
        int plugged = status.getIntExtra(BatteryManager.EXTRA_PLUGGED, -1);
        snapshot.charging = plugged < 0 ? null : Boolean.valueOf(plugged > 0);
    }

    private ActivityManager.MemoryInfo memory() {
        ActivityManager manager =
                (ActivityManager) context.getSystemService(Context.ACTIVITY_SERVICE);
        if (manager == null) {
            return null;
        }
        ActivityManager.MemoryInfo info = new ActivityManager.MemoryInfo();
        manager.getMemoryInfo(info);
        return info.totalMem > 0 ? info : null;
    }

    private static String known(String text) {
        return text == null || text.isEmpty() || text.equals(Build.UNKNOWN) ? null : text;
    }
}
