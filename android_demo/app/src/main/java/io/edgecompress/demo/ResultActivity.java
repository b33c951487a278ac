package io.edgecompress.demo;

import android.content.ClipData;
import android.content.Context;
import android.content.Intent;
import android.os.Bundle;
import android.view.LayoutInflater;
import android.view.View;
import android.view.ViewGroup;
import android.widget.AdapterView;
import android.widget.ArrayAdapter;
import android.widget.Spinner;
import android.widget.TextView;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.Format;
import io.edgecompress.demo.core.Json;
import io.edgecompress.demo.core.Result;
import java.io.File;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.json.JSONObject;

/** One result: verdict, comparison, distribution, checks, numbers. */
public class ResultActivity extends Screen {
    private static final String FILE = "file";

    private Result result;
    private File file;

    static Intent intent(Context context, File file) {
        return new Intent(context, ResultActivity.class).putExtra(FILE, file.getName());
    }

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        try {
            String name = getIntent().getStringExtra(FILE);
            file = app().history().file(name == null ? "" : name);
            result = Result.read(file);
        } catch (Failure e) {
            ViewGroup content = show(getString(R.string.result), 0, true);
            addText(content, R.style.Text, e.getMessage());
            return;
        }
        String title = result.name == null ? getString(R.string.result) : result.name;
        show(title, R.layout.result, true);
        action(R.string.share, this::share);
        showHead();
        showComparison();
        showChooser();
        showPhone();
    }

    private void showHead() {
        Result.Measurement best = result.main();
        badge(findViewById(R.id.verdict), result.verdict());
        boolean timed = best != null && best.median != null;
        text(R.id.headline, timed ? Format.time(best.median) : "")
                .setVisibility(timed ? View.VISIBLE : View.GONE);
        String detail = "";
        if (timed) {
            String setting = App.setting(this, best.kind, best.threads, best.xnnpack);
            detail = setting;
        }
        text(R.id.headline_detail, detail).setVisibility(timed ? View.VISIBLE : View.GONE);
        String reason = result.error;
        if (reason == null && best != null) {
            reason = best.error == null ? reason(best) : best.error;
        }
        text(R.id.reason, reason == null ? "" : reason)
                .setVisibility(reason == null ? View.GONE : View.VISIBLE);
    }

    private static String reason(Result.Measurement measurement) {
        for (JSONObject check : measurement.checks()) {
            if (measurement.verdict().equals(Json.text(check, "verdict"))) {
                return Json.text(check, "reason");
            }
        }
        return null;
    }

    private void showComparison() {
        List<BarsView.Bar> bars = new ArrayList<>();
        Result.Measurement main = result.main();
        for (Result.Measurement best : result.bestOfEachKind()) {
            String size = "";
            Double bytes = Json.number(best.json.optJSONObject("model"), "bytes");
            if (bytes != null) {
                size = ", " + Format.size(bytes);
            }
            if (best.median == null) {
                String text = getString(R.string.check_not_measured);
                bars.add(new BarsView.Bar(best.kind + size, 0, text, false));
            } else {
                String text = Format.time(best.median);
                bars.add(new BarsView.Bar(best.kind + size, best.median, text, best == main));
            }
        }
        ((BarsView) findViewById(R.id.bars)).show(bars, 0);
        View card = findViewById(R.id.compare_card);
        card.setVisibility(bars.isEmpty() ? View.GONE : View.VISIBLE);
    }

    private void showChooser() {
        List<String> settings = new ArrayList<>();
        int chosen = 0;
        for (Result.Measurement one : result.measurements) {
            if (one == result.main()) {
                chosen = settings.size();
            }
            settings.add(App.setting(this, one.kind, one.threads, one.xnnpack));
        }
        View card = findViewById(R.id.measurement_card);
        if (settings.isEmpty()) {
            card.setVisibility(View.GONE);
            return;
        }
        Spinner spinner = findViewById(R.id.choose);
        ArrayAdapter<String> adapter =
                new ArrayAdapter<>(this, android.R.layout.simple_spinner_item, settings);
        adapter.setDropDownViewResource(android.R.layout.simple_spinner_dropdown_item);
        spinner.setAdapter(adapter);
        spinner.setSelection(chosen);
        spinner.setOnItemSelectedListener(
                new AdapterView.OnItemSelectedListener() {
                    @Override
                    public void onItemSelected(AdapterView<?> list, View view, int at, long id) {
                        showMeasurement(result.measurements.get(at));
                    }

                    @Override
                    public void onNothingSelected(AdapterView<?> list) {}
                });
        showMeasurement(result.measurements.get(chosen));
    }

    private void showMeasurement(Result.Measurement measurement) {
        text(R.id.measurement_error, measurement.error == null ? "" : measurement.error)
                .setVisibility(measurement.error == null ? View.GONE : View.VISIBLE);
        HistogramView histogram = findViewById(R.id.histogram);
        histogram.setVisibility(measurement.median == null ? View.GONE : View.VISIBLE);
        histogram.show(measurement);
        showChecks(measurement);
        ViewGroup numbers = findViewById(R.id.numbers);
        numbers.removeAllViews();
        if (measurement.median == null) {
            row(numbers, getString(R.string.row_median), getString(R.string.check_not_measured));
            return;
        }
        time(numbers, R.string.row_init, measurement, "init");
        time(numbers, R.string.row_first, measurement, "first");
        time(numbers, R.string.row_min, measurement, "min");
        time(numbers, R.string.row_p5, measurement, "p5");
        time(numbers, R.string.row_median, measurement, "median");
        time(numbers, R.string.row_mean, measurement, "mean");
        time(numbers, R.string.row_p90, measurement, "p90");
        time(numbers, R.string.row_p95, measurement, "p95");
        time(numbers, R.string.row_max, measurement, "max");
        time(numbers, R.string.row_std, measurement, "std");
        Double spread = measurement.latency("spread_pct");
        row(numbers, getString(R.string.row_spread), spread == null ? null : Format.percent(spread));
        Double samples = measurement.latency("samples");
        row(numbers, getString(R.string.row_samples), count(samples));
        Double memory = Json.number(measurement.json.optJSONObject("memory_kb"), "overall");
        String size = memory == null ? null : Format.size(memory * 1024);
        row(numbers, getString(R.string.row_memory), size);
    }

    private void time(ViewGroup table, int name, Result.Measurement measurement, String field) {
        Double value = measurement.latency(field);
        row(table, getString(name), value == null ? null : Format.time(value));
    }

    private static String count(Double value) {
        return value == null ? null : String.format(Locale.getDefault(), "%,.0f", value);
    }

    private void showChecks(Result.Measurement measurement) {
        ViewGroup table = findViewById(R.id.checks);
        table.removeAllViews();
        for (JSONObject check : measurement.checks()) {
            String rule = Json.text(check, "rule");
            String verdict = Json.text(check, "verdict");
            String value = verdict(verdict);
            Double measured = Json.number(check, "measured");
            Double limit = Json.number(check, "limit");
            String unit = Json.text(check, "unit");
            if ("golden".equals(rule)) {
                JSONObject golden = measurement.json.optJSONObject("golden");
                String equal = count(Json.number(golden, "equal"));
                String all = count(Json.number(golden, "checked"));
                value += ", " + getString(R.string.golden_equal, equal, all);
            } else if (measured != null && limit != null) {
                String text = getString(R.string.limit, shown(measured, unit), shown(limit, unit));
                value += ", " + text;
            } else if (measured != null) {
                value = shown(measured, unit) + ", " + value;
            }
            TextView view = row(table, getString(rule(rule)), value);
            view.setTextColor(getColor(color(verdict)));
        }
        if (measurement.json.optJSONObject("golden") == null) {
            row(table, getString(R.string.rule_golden), getString(R.string.golden_none));
        }
    }

    private static String shown(double value, String unit) {
        if ("microseconds".equals(unit)) {
            return Format.time(value);
        }
        return "bytes".equals(unit) ? Format.size(value) : String.valueOf(value);
    }

    private static int rule(String rule) {
        switch (String.valueOf(rule)) {
            case "file_size":
                return R.string.rule_file_size;
            case "ram":
                return R.string.rule_ram;
            case "golden":
                return R.string.rule_golden;
            case "accuracy":
                return R.string.rule_accuracy;
            default:
                return R.string.rule_latency;
        }
    }

    private String verdict(String verdict) {
        switch (String.valueOf(verdict)) {
            case "pass":
                return getString(R.string.check_pass);
            case "fail":
                return getString(R.string.check_fail);
            case "uncertain":
                return getString(R.string.check_uncertain);
            case "not_applicable":
                return getString(R.string.check_not_applicable);
            default:
                return getString(R.string.check_not_measured);
        }
    }

    private static int color(String verdict) {
        switch (String.valueOf(verdict)) {
            case "pass":
                return R.color.pass;
            case "fail":
                return R.color.fail;
            case "not_applicable":
                return R.color.text;
            default:
                return R.color.warn;
        }
    }

    private void showPhone() {
        ViewGroup table = findViewById(R.id.phone);
        JSONObject device = result.json.optJSONObject("device");
        JSONObject state = result.json.optJSONObject("state");
        String maker = Json.text(device, "manufacturer");
        String model = Json.text(device, "model");
        String name = maker == null || model == null ? model : maker + " " + model;
        row(table, getString(R.string.row_model), name);
        row(table, getString(R.string.row_soc), Json.text(device, "soc"));
        row(table, getString(R.string.row_android), Json.text(device, "android"));
        row(table, getString(R.string.row_abi), Json.text(device, "abi"));
        row(table, getString(R.string.row_governor), Json.text(state, "governor"));
        Double before = Json.number(state, "thermal_before");
        Double after = Json.number(state, "thermal_after");
        String thermal = null;
        if (before != null && after != null) {
            thermal =
                    before.equals(after)
                            ? count(before)
                            : getString(R.string.from_to, count(before), count(after));
        }
        row(table, getString(R.string.row_thermal), thermal);
        Double battery = Json.number(state, "battery_after");
        String charge = battery == null ? null : Format.percent(100 * battery);
        boolean charging = state != null && state.optBoolean("charging");
        if (charge != null && charging) {
            charge = getString(R.string.charging, charge);
        }
        row(table, getString(R.string.row_battery), charge);
        if (!result.measurements.isEmpty()) {
            JSONObject runtime = result.measurements.get(0).json.optJSONObject("runtime");
            String version = Json.text(runtime, "version");
            String text = Json.text(runtime, "name") + (version == null ? "" : " " + version);
            row(table, getString(R.string.row_runtime), text);
        }
    }

    private TextView row(ViewGroup table, String key, String value) {
        View row = LayoutInflater.from(this).inflate(R.layout.table_row, table, false);
        ((TextView) row.findViewById(R.id.key)).setText(key);
        TextView view = row.findViewById(R.id.value);
        view.setText(value == null ? getString(R.string.unknown) : value);
        if (value == null) {
            view.setTextColor(getColor(R.color.text_soft));
        }
        table.addView(row);
        return view;
    }

    private void share() {
        Intent send = new Intent(Intent.ACTION_SEND);
        send.setType("application/json");
        send.putExtra(Intent.EXTRA_STREAM, ResultProvider.uri(file));
        send.putExtra(Intent.EXTRA_SUBJECT, file.getName());
        send.setClipData(ClipData.newRawUri(file.getName(), ResultProvider.uri(file)));
        send.addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION);
        startActivity(Intent.createChooser(send, getString(R.string.share)));
    }
}
