package io.edgecompress.demo;

import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.database.Cursor;
import android.net.Uri;
import android.os.Bundle;
import android.provider.OpenableColumns;
import android.view.LayoutInflater;
import android.view.View;
import android.view.ViewGroup;
import android.widget.Button;
import android.widget.TextView;
import android.widget.Toast;
import io.edgecompress.demo.core.BundleStore;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.Format;
import io.edgecompress.demo.core.LiveModel;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.util.List;

/** Pick a bundle. */
public class MainActivity extends Screen {
    private static final int PICK = 1;
    private static final int SHOWN_RESULTS = 3;

    private String message;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        message = state == null ? null : state.getString("message");
        show(getString(R.string.app_name), 0, false);
        action(R.string.open_zip, this::pick);
    }

    @Override
    protected void onSaveInstanceState(Bundle state) {
        super.onSaveInstanceState(state);
        state.putString("message", message);
    }

    @Override
    protected void onResume() {
        super.onResume();
        fill();
    }

    private void fill() {
        ViewGroup content = findViewById(R.id.content);
        content.removeAllViews();
        addText(content, R.style.Text_Soft, getString(R.string.tagline));
        if (message != null) {
            TextView view = addText(content, R.style.Text, message);
            view.setTextColor(getColor(R.color.fail));
            view.setAccessibilityLiveRegion(View.ACCESSIBILITY_LIVE_REGION_POLITE);
        }
        if (app().runs.isRunning()) {
            addRunning(content);
        }
        addText(content, R.style.Text_Section, getString(R.string.bundles));
        for (BundleStore.Entry entry : app().bundles()) {
            addBundle(content, entry);
        }
        File pushed = app().pushed();
        String hint =
                pushed == null
                        ? getString(R.string.storage_internal)
                        : getString(R.string.open_zip_hint, pushed.getPath());
        addText(content, R.style.Text_Soft, getString(R.string.open_zip) + " " + hint)
                .setVisibility(View.VISIBLE);
        addText(content, R.style.Text_Section, getString(R.string.earlier));
        List<File> results = app().history().list();
        if (results.isEmpty()) {
            addText(content, R.style.Text_Soft, getString(R.string.no_results));
        }
        for (File file : results.subList(0, Math.min(SHOWN_RESULTS, results.size()))) {
            HistoryActivity.addRow(this, content, file);
        }
        ViewGroup buttons = new android.widget.LinearLayout(this);
        if (results.size() > SHOWN_RESULTS) {
            addButton(buttons, R.string.all_results, HistoryActivity.class);
        }
        addNotices(buttons);
        content.addView(buttons);
    }

    private void addRunning(ViewGroup content) {
        View card = LayoutInflater.from(this).inflate(R.layout.result_row, content, false);
        TextView name = card.findViewById(R.id.row_name);
        TextView detail = card.findViewById(R.id.row_detail);
        name.setText(R.string.running_now);
        detail.setText(app().runs.name());
        card.findViewById(R.id.row_badge).setVisibility(View.GONE);
        card.setOnClickListener(view -> startActivity(new Intent(this, RunActivity.class)));
        content.addView(card);
    }

    private void addBundle(ViewGroup content, BundleStore.Entry entry) {
        View card = LayoutInflater.from(this).inflate(R.layout.bundle_card, content, false);
        TextView name = card.findViewById(R.id.bundle_name);
        TextView detail = card.findViewById(R.id.bundle_detail);
        if (entry.bundle == null) {
            name.setText(entry.folder.getName());
            detail.setText(getString(R.string.damaged) + ". " + entry.failure.getMessage());
            detail.setTextColor(getColor(R.color.fail));
            card.findViewById(R.id.bundle_buttons).setVisibility(View.GONE);
        } else {
            name.setText(entry.bundle.name);
            detail.setText(detail(entry));
            Button run = card.findViewById(R.id.bundle_run);
            run.setContentDescription(run.getText() + ", " + entry.bundle.name);
            run.setOnClickListener(view -> startActivity(RunActivity.intent(this, entry.folder)));
            View live = card.findViewById(R.id.bundle_live);
            boolean drawable = LiveModel.choose(entry.bundle) != null;
            live.setVisibility(drawable ? View.VISIBLE : View.GONE);
            live.setOnClickListener(view -> startActivity(LiveActivity.intent(this, entry.folder)));
        }
        content.addView(card);
    }

    private String detail(BundleStore.Entry entry) {
        int count = entry.bundle.models.size();
        String models = getResources().getQuantityString(R.plurals.models, count, count);
        String size = Format.size(entry.bundle.bytes());
        return entry.bundle.target == null
                ? getString(R.string.bundle_detail, models, size)
                : getString(R.string.bundle_detail_target, models, size, entry.bundle.target);
    }

    private void addButton(ViewGroup content, int text, Class<?> screen) {
        Button button = new Button(this, null, 0, R.style.Button_Other);
        button.setText(text);
        button.setOnClickListener(view -> startActivity(new Intent(this, screen)));
        content.addView(button);
    }

    private void addNotices(ViewGroup content) {
        Button button = new Button(this, null, 0, R.style.Button);
        button.setText(R.string.notices);
        button.setTextColor(getColor(R.color.accent));
        button.setOnClickListener(view -> showNotices());
        content.addView(button);
    }

    private void showNotices() {
        String text;
        try (InputStream in = getAssets().open("NOTICE.txt")) {
            java.io.ByteArrayOutputStream out = new java.io.ByteArrayOutputStream();
            io.edgecompress.demo.core.Disk.copy(in, out, 1 << 20);
            text = out.toString("UTF-8");
        } catch (IOException e) {
            text = String.valueOf(e.getMessage());
        }
        new android.app.AlertDialog.Builder(this)
                .setTitle(R.string.notices)
                .setMessage(text)
                .setPositiveButton(R.string.close, null)
                .show();
    }

    private void pick() {
        Intent intent = new Intent(Intent.ACTION_OPEN_DOCUMENT);
        intent.addCategory(Intent.CATEGORY_OPENABLE);
        intent.setType("*/*");
        intent.putExtra(
                Intent.EXTRA_MIME_TYPES,
                new String[] {"application/zip", "application/octet-stream"});
        try {
            startActivityForResult(intent, PICK);
        } catch (ActivityNotFoundException e) {
            tell("This device has no file picker. Push the folder with adb.");
        }
    }

    @Override
    protected void onActivityResult(int request, int code, Intent data) {
        super.onActivityResult(request, code, data);
        if (request == PICK && code == RESULT_OK && data != null && data.getData() != null) {
            open(data.getData());
        }
    }

    /** Unpacks a .zip on a thread of its own. */
    private void open(Uri uri) {
        tell(null);
        Toast.makeText(this, R.string.reading, Toast.LENGTH_SHORT).show();
        String name = nameOf(uri);
        DemoApp app = app();
        new Thread(
                        () -> {
                            String problem = null;
                            try (InputStream in = getContentResolver().openInputStream(uri)) {
                                if (in == null) {
                                    throw new IOException("it cannot be opened");
                                }
                                app.imported().add(in, name);
                            } catch (IOException | SecurityException e) {
                                problem = "Cannot read " + name + ": " + e.getMessage() + ".";
                            } catch (Failure e) {
                                problem = name + ": " + e.getMessage();
                            }
                            String told = problem;
                            runOnUiThread(() -> tell(told));
                        },
                        "unpack")
                .start();
    }

    private String nameOf(Uri uri) {
        try (Cursor cursor = getContentResolver().query(uri, null, null, null, null)) {
            int column =
                    cursor == null ? -1 : cursor.getColumnIndex(OpenableColumns.DISPLAY_NAME);
            if (column >= 0 && cursor.moveToFirst() && cursor.getString(column) != null) {
                return cursor.getString(column);
            }
        } catch (RuntimeException e) {
            // A provider that tells no name.
        }
        String last = uri.getLastPathSegment();
        return last == null ? "bundle" : last;
    }

    private void tell(String text) {
        message = text;
        if (!isDestroyed()) {
            fill();
        }
    }
}
