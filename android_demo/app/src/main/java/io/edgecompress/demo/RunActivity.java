package io.edgecompress.demo;

import android.Manifest;
import android.content.Context;
import android.content.Intent;
import android.content.pm.PackageManager;
import android.os.Build;
import android.os.Bundle;
import android.view.View;
import android.view.WindowManager;
import android.widget.Button;
import android.widget.CompoundButton;
import android.widget.ProgressBar;
import android.widget.RadioGroup;
import android.widget.TextView;
import io.edgecompress.demo.core.BundleStore;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.Format;
import io.edgecompress.demo.core.Plan;
import io.edgecompress.demo.core.Progress;
import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** Choose how to measure; then watch, or cancel. */
public class RunActivity extends Screen implements RunManager.Listener {
    private static final String FOLDER = "folder";
    private static final int NOTIFICATIONS = 1;
    private static final int WARMUP = 10;
    private static final int RUNS = 50;
    private static final int REPEATS = 5;
    // Loading, first run, golden outputs.
    private static final double AROUND_S = 0.2;

    private BundleStore.Entry entry;
    private boolean wasRunning;

    static Intent intent(Context context, File folder) {
        return new Intent(context, RunActivity.class).putExtra(FOLDER, folder.getPath());
    }

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        getWindow().addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON);
        wasRunning = state != null && state.getBoolean("running");
        open();
    }

    @Override
    protected void onNewIntent(Intent intent) {
        super.onNewIntent(intent);
        setIntent(intent);
        open();
    }

    private void open() {
        RunManager runs = app().runs;
        String path = getIntent().getStringExtra(FOLDER);
        if (runs.isRunning() || path == null) {
            // From a notification, or while another bundle is run: that run is shown.
            entry = null;
            show(runs.name() == null ? getString(R.string.measuring) : runs.name(), R.layout.run, true);
        } else {
            entry = BundleStore.Entry.of(new File(path));
            String name = entry.bundle == null ? entry.folder.getName() : entry.bundle.name;
            show(name, R.layout.run, true);
        }
        CompoundButton.OnCheckedChangeListener changed = (button, on) -> showPlan();
        for (int id : new int[] {
            R.id.threads_1, R.id.threads_2, R.id.threads_4, R.id.xnnpack_on, R.id.xnnpack_off
        }) {
            ((CompoundButton) findViewById(id)).setOnCheckedChangeListener(changed);
        }
        label(R.id.threads_1, 1);
        label(R.id.threads_2, 2);
        label(R.id.threads_4, 4);
        RadioGroup length = findViewById(R.id.length);
        length.setOnCheckedChangeListener((group, id) -> showPlan());
        findViewById(R.id.start).setOnClickListener(view -> start());
        findViewById(R.id.cancel).setOnClickListener(view -> runs.cancel());
        showPlan();
    }

    private void label(int id, int threads) {
        findViewById(id).setContentDescription(getString(R.string.threads) + ": " + threads);
    }

    @Override
    protected void onStart() {
        super.onStart();
        app().runs.listen(this);
        onRunChanged();
    }

    @Override
    protected void onStop() {
        app().runs.unlisten(this);
        super.onStop();
    }

    @Override
    protected void onSaveInstanceState(Bundle state) {
        super.onSaveInstanceState(state);
        state.putBoolean("running", wasRunning);
    }

    private boolean isChecked(int id) {
        return ((CompoundButton) findViewById(id)).isChecked();
    }

    private double seconds() {
        int chosen = ((RadioGroup) findViewById(R.id.length)).getCheckedRadioButtonId();
        if (chosen == R.id.length_quick) {
            return 0.3;
        }
        return chosen == R.id.length_thorough ? 10 : 1;
    }

    private Plan plan() {
        List<Integer> threads = new ArrayList<>();
        List<Boolean> xnnpack = new ArrayList<>();
        if (isChecked(R.id.threads_1)) {
            threads.add(1);
        }
        if (isChecked(R.id.threads_2)) {
            threads.add(2);
        }
        if (isChecked(R.id.threads_4)) {
            threads.add(4);
        }
        if (isChecked(R.id.xnnpack_on)) {
            xnnpack.add(true);
        }
        if (isChecked(R.id.xnnpack_off)) {
            xnnpack.add(false);
        }
        return new Plan(
                threads,
                xnnpack,
                WARMUP,
                RUNS,
                seconds(),
                REPEATS,
                Collections.<String>emptySet());
    }

    private void showPlan() {
        TextView view = findViewById(R.id.plan);
        View start = findViewById(R.id.start);
        if (entry == null) {
            return;
        }
        if (entry.bundle == null) {
            view.setText(entry.failure.getMessage());
            view.setTextColor(getColor(R.color.fail));
            start.setEnabled(false);
            return;
        }
        Plan plan = plan();
        int count = entry.bundle.models.size() * plan.threads.size() * plan.xnnpack.size();
        start.setEnabled(count > 0);
        if (count == 0) {
            view.setText(R.string.plan_empty);
        } else {
            String span = Format.span(count * (plan.minSeconds + AROUND_S));
            view.setText(getResources().getQuantityString(R.plurals.plan, count, count, span));
        }
    }

    private void start() {
        askForNotifications();
        try {
            app().runs.start(entry.folder, entry.bundle.name, plan(), null);
        } catch (Failure e) {
            text(R.id.plan, e.getMessage()).setTextColor(getColor(R.color.fail));
        }
    }

    /** The run does not depend on the answer; only its notification does. */
    private void askForNotifications() {
        if (Build.VERSION.SDK_INT >= 33
                && checkSelfPermission(Manifest.permission.POST_NOTIFICATIONS)
                        != PackageManager.PERMISSION_GRANTED) {
            requestPermissions(
                    new String[] {Manifest.permission.POST_NOTIFICATIONS}, NOTIFICATIONS);
        }
    }

    @Override
    public void onRunChanged() {
        RunManager runs = app().runs;
        boolean running = runs.isRunning();
        findViewById(R.id.setup).setVisibility(running ? View.GONE : View.VISIBLE);
        findViewById(R.id.progress_card).setVisibility(running ? View.VISIBLE : View.GONE);
        if (running) {
            wasRunning = true;
            showProgress(runs);
        } else if (wasRunning) {
            wasRunning = false;
            if (runs.lastResult() != null) {
                startActivity(ResultActivity.intent(this, runs.lastResult()));
                finish();
            } else if (runs.lastFailure() != null) {
                TextView view = text(R.id.plan, runs.lastFailure().getMessage());
                view.setTextColor(getColor(R.color.fail));
            }
        } else if (entry == null) {
            finish();
        }
    }

    private void showProgress(RunManager runs) {
        Button cancel = findViewById(R.id.cancel);
        cancel.setEnabled(!runs.isStopping());
        cancel.setText(runs.isStopping() ? R.string.stopping : R.string.cancel);
        Progress progress = runs.progress();
        if (progress == null) {
            return;
        }
        ProgressBar bar = findViewById(R.id.progress);
        bar.setProgress((int) (1000 * progress.done));
        bar.setContentDescription(
                getString(R.string.progress_label, (int) (100 * progress.done)));
        text(R.id.progress_step, getString(R.string.step, progress.step + 1, progress.steps));
        text(
                R.id.progress_setting,
                App.setting(this, progress.kind, progress.threads, progress.xnnpack));
    }
}
