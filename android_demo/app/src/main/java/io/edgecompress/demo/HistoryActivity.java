package io.edgecompress.demo;

import android.os.Bundle;
import android.view.LayoutInflater;
import android.view.View;
import android.view.ViewGroup;
import android.widget.TextView;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.Format;
import io.edgecompress.demo.core.Result;
import java.io.File;
import java.text.DateFormat;
import java.util.Date;
import java.util.List;

/** All results, newest first. */
public class HistoryActivity extends Screen {
    private static final int MOST = 200;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        show(getString(R.string.history), 0, true);
    }

    @Override
    protected void onResume() {
        super.onResume();
        ViewGroup content = findViewById(R.id.content);
        content.removeAllViews();
        List<File> files = app().history().list();
        if (files.isEmpty()) {
            addText(content, R.style.Text_Soft, getString(R.string.no_results));
        }
        for (File file : files.subList(0, Math.min(MOST, files.size()))) {
            addRow(this, content, file);
        }
    }

    /** Adds a line for a result file; a damaged one says so. */
    static void addRow(Screen screen, ViewGroup content, File file) {
        View row = LayoutInflater.from(screen).inflate(R.layout.result_row, content, false);
        TextView name = row.findViewById(R.id.row_name);
        TextView badge = row.findViewById(R.id.row_badge);
        TextView detail = row.findViewById(R.id.row_detail);
        try {
            Result result = Result.read(file);
            name.setText(result.name == null ? screen.getString(R.string.no_name) : result.name);
            screen.badge(badge, result.verdict());
            detail.setText(when(file) + "\n" + summary(screen, result));
            row.setOnClickListener(
                    view -> screen.startActivity(ResultActivity.intent(screen, file)));
        } catch (Failure e) {
            name.setText(file.getName());
            badge.setText(R.string.unreadable);
            detail.setText(e.getMessage());
        }
        content.addView(row);
    }

    private static String when(File file) {
        return DateFormat.getDateTimeInstance(DateFormat.MEDIUM, DateFormat.SHORT)
                .format(new Date(file.lastModified()));
    }

    private static String summary(Screen screen, Result result) {
        Result.Measurement best = result.main();
        if (best == null || best.median == null) {
            String reason = result.error;
            if (reason == null && best != null) {
                reason = best.error;
            }
            return reason == null ? screen.getString(R.string.verdict_not_measured) : reason;
        }
        return Format.time(best.median)
                + ", "
                + App.setting(screen, best.kind, best.threads, best.xnnpack);
    }
}
