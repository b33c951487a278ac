package io.edgecompress.demo;

import android.content.Context;
import android.content.Intent;
import android.os.Bundle;
import android.view.View;
import android.view.ViewGroup;
import io.edgecompress.demo.core.BundleReader;
import io.edgecompress.demo.core.Drawing;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.Format;
import io.edgecompress.demo.core.LiveModel;
import java.io.File;
import java.util.ArrayList;
import java.util.List;

/** Draw with a finger; see the model's answer and how long it took. */
public class LiveActivity extends Screen {
    private static final String FOLDER = "folder";
    private static final String LINES = "lines";
    private static final int SHOWN_CLASSES = 3;

    private LiveModel model;
    private DrawView draw;

    static Intent intent(Context context, File folder) {
        return new Intent(context, LiveActivity.class).putExtra(FOLDER, folder.getPath());
    }

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        String path = getIntent().getStringExtra(FOLDER);
        File folder = path == null ? app().shipped() : new File(path);
        try {
            model = LiveModel.open(app().engine, app().clock, BundleReader.read(folder));
        } catch (Failure e) {
            ViewGroup content = show(getString(R.string.live), 0, true);
            addText(content, R.style.Text, e.getMessage()).setTextColor(getColor(R.color.fail));
            return;
        }
        show(model.bundle.name, R.layout.live, true);
        List<String> labels = new ArrayList<>();
        int classes = model.bundle.labels == null ? 0 : model.bundle.labels.size();
        for (int i = 0; i < classes; i++) {
            labels.add(model.label(i));
        }
        String hint = getString(R.string.draw_digit, android.text.TextUtils.join(", ", labels));
        text(R.id.live_hint, hint).setVisibility(classes == 0 ? View.GONE : View.VISIBLE);
        draw = findViewById(R.id.draw);
        if (state != null) {
            restore(draw.drawing(), state);
        }
        draw.listen(this::answer);
        findViewById(R.id.clear).setOnClickListener(view -> draw.clear());
        answer();
    }

    @Override
    protected void onSaveInstanceState(Bundle state) {
        super.onSaveInstanceState(state);
        if (draw != null) {
            List<float[]> lines = draw.drawing().lines();
            state.putInt(LINES, lines.size());
            for (int i = 0; i < lines.size(); i++) {
                state.putFloatArray(LINES + i, lines.get(i));
            }
        }
    }

    private static void restore(Drawing drawing, Bundle state) {
        List<float[]> lines = new ArrayList<>();
        for (int i = 0; i < state.getInt(LINES); i++) {
            float[] line = state.getFloatArray(LINES + i);
            if (line != null) {
                lines.add(line);
            }
        }
        drawing.restore(lines);
    }

    void answer() {
        float[] picture = model.picture(draw.drawing());
        ((PictureView) findViewById(R.id.picture)).show(picture, model.height, model.width);
        List<BarsView.Bar> bars = new ArrayList<>();
        if (draw.drawing().isEmpty()) {
            text(R.id.live_answer, getString(R.string.no_answer));
            text(R.id.live_time, model.model.kind);
            describe(getString(R.string.canvas_empty));
        } else {
            try {
                LiveModel.Answer answer = model.classify(picture);
                int best = answer.order.get(0);
                String time = Format.time(answer.microseconds);
                text(R.id.live_answer, model.label(best));
                text(
                        R.id.live_time,
                        model.model.kind + ", " + getString(R.string.one_run, time));
                boolean shares = areShares(answer.scores);
                for (int place : answer.order.subList(0, Math.min(SHOWN_CLASSES, classes(answer)))) {
                    float score = answer.scores[place];
                    String text = shares ? Format.percent(100 * score) : String.valueOf(score);
                    double length = shares ? score : Math.max(0, score);
                    bars.add(new BarsView.Bar(model.label(place), length, text, place == best));
                }
                describe(getString(R.string.answer_label, model.label(best), bars.get(0).text, time));
                ((BarsView) findViewById(R.id.live_scores)).show(bars, shares ? 1 : 0);
                return;
            } catch (Failure e) {
                text(R.id.live_answer, getString(R.string.no_answer));
                text(R.id.live_time, e.getMessage());
            }
        }
        ((BarsView) findViewById(R.id.live_scores)).show(bars, 1);
    }

    private void describe(String what) {
        draw.setContentDescription(getString(R.string.canvas_label, what));
    }

    private static int classes(LiveModel.Answer answer) {
        return answer.order.size();
    }

    /** Whether scores come out of a softmax. */
    private static boolean areShares(float[] scores) {
        float sum = 0;
        for (float score : scores) {
            if (score < 0 || score > 1.01f) {
                return false;
            }
            sum += score;
        }
        return sum > 0.9f && sum < 1.1f;
    }

    @Override
    protected void onDestroy() {
        if (model != null) {
            model.close();
        }
        super.onDestroy();
    }
}
