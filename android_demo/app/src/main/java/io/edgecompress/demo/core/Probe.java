package io.edgecompress.demo.core;

import org.json.JSONObject;

/** What the system tells of the device and its state; every value may be null. */
public interface Probe {
    /** Returns the object `device` of the measurement's schema. */
    JSONObject device();

    /** Returns what can change during a run. */
    Snapshot snapshot();

    /** Values of one moment. */
    final class Snapshot {
        public Integer thermal;
        public Double thermalHeadroom;
        public Double battery;
        public Double batteryTemperatureC;
        public Boolean charging;
        public Boolean powerSave;
        public String governor;
        public Double load;
        public Long availableKb;

        /** Returns the object `state` of the measurement's schema. */
        static JSONObject state(Snapshot before, Snapshot after) {
            return Json.object()
                    .put("thermal_before", before.thermal)
                    .put("thermal_after", after.thermal)
                    .put("thermal_headroom_before", before.thermalHeadroom)
                    .put("thermal_headroom_after", after.thermalHeadroom)
                    .put("battery_before", before.battery)
                    .put("battery_after", after.battery)
                    .put("battery_temperature_c", after.batteryTemperatureC)
                    .put("charging", after.charging)
                    .put("power_save", after.powerSave)
                    .put("governor", after.governor)
                    .put("load_before", before.load)
                    .put("load_after", after.load)
                    .put("available_kb", before.availableKb)
                    .build();
        }
    }
}
