package io.edgecompress.demo;

import android.content.Context;
import android.graphics.Canvas;
import android.graphics.Paint;
import android.graphics.RectF;
import android.text.TextPaint;
import android.util.AttributeSet;
import android.util.TypedValue;
import android.view.View;
import io.edgecompress.demo.core.Format;
import io.edgecompress.demo.core.Result;
import java.util.Locale;

/** How often each latency occurred, with the median marked. */
public class HistogramView extends View {
    private final TextPaint labels = new TextPaint(Paint.ANTI_ALIAS_FLAG);
    private final Paint fill = new Paint(Paint.ANTI_ALIAS_FLAG);
    private final Paint mark = new Paint(Paint.ANTI_ALIAS_FLAG);
    private final RectF box = new RectF();
    private final float dp;
    private double[] edges = new double[0];
    private double[] counts = new double[0];
    private double median;
    private double slowest;

    public HistogramView(Context context, AttributeSet attributes) {
        super(context, attributes);
        dp = getResources().getDisplayMetrics().density;
        labels.setColor(context.getColor(R.color.text_soft));
        labels.setTextSize(
                TypedValue.applyDimension(
                        TypedValue.COMPLEX_UNIT_SP, 13, getResources().getDisplayMetrics()));
        mark.setColor(context.getColor(R.color.text));
        mark.setStrokeWidth(1.5f * dp);
    }

    void show(Result.Measurement measurement) {
        edges = measurement.edges();
        counts = measurement.counts();
        if (measurement.median == null || edges.length != counts.length + 1) {
            edges = new double[0];
            counts = new double[0];
            setContentDescription(null);
            return;
        }
        median = measurement.median;
        Double max = measurement.latency("max");
        slowest = max == null ? edges[edges.length - 1] : max;
        double samples = 0;
        for (double count : counts) {
            samples += count;
        }
        setContentDescription(
                getResources()
                        .getString(
                                R.string.histogram_label,
                                String.format(Locale.getDefault(), "%,.0f", samples),
                                Format.time(edges[0]),
                                Format.time(slowest),
                                Format.time(median)));
        invalidate();
    }

    @Override
    protected void onMeasure(int width, int height) {
        int wanted = (int) Math.ceil(110 * dp + 2 * labels.getFontSpacing() + 8 * dp);
        setMeasuredDimension(MeasureSpec.getSize(width), resolveSize(wanted, height));
    }

    @Override
    protected void onDraw(Canvas canvas) {
        if (counts.length == 0) {
            return;
        }
        double most = 1;
        for (double count : counts) {
            most = Math.max(most, count);
        }
        float line = labels.getFontSpacing();
        float top = line + 4 * dp;
        float bottom = getHeight() - line - 4 * dp;
        float width = getWidth() / (float) counts.length;
        double low = edges[0];
        double high = edges[edges.length - 1];
        float at = (float) (getWidth() * Math.min(1, (median - low) / (high - low)));
        for (int i = 0; i < counts.length; i++) {
            if (counts[i] == 0) {
                continue;
            }
            float height = (float) Math.max(2 * dp, (bottom - top) * counts[i] / most);
            boolean holds = at >= i * width && at < (i + 1) * width;
            fill.setColor(getContext().getColor(holds ? R.color.accent : R.color.bar_other));
            box.set(i * width + dp, bottom - height, (i + 1) * width - dp, bottom);
            canvas.drawRoundRect(box, 2 * dp, 2 * dp, fill);
        }
        mark.setColor(getContext().getColor(R.color.line));
        canvas.drawLine(0, bottom, getWidth(), bottom, mark);
        mark.setColor(getContext().getColor(R.color.accent));
        canvas.drawLine(at, top - 2 * dp, at, bottom, mark);
        String text = getResources().getString(R.string.median_mark, Format.time(median));
        float length = labels.measureText(text);
        float x = Math.max(0, Math.min(getWidth() - length, at - length / 2));
        canvas.drawText(text, x, -labels.ascent(), labels);
        float base = getHeight() - labels.descent();
        canvas.drawText(Format.time(low), 0, base, labels);
        // The last bin holds all that is slower.
        String last = "≥ " + Format.time(edges[edges.length - 2]);
        canvas.drawText(last, getWidth() - labels.measureText(last), base, labels);
    }
}
