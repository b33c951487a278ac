package io.edgecompress.demo;

import android.content.Context;
import android.graphics.Canvas;
import android.graphics.Paint;
import android.graphics.RectF;
import android.text.TextPaint;
import android.text.TextUtils;
import android.util.AttributeSet;
import android.util.TypedValue;
import android.view.View;
import java.util.ArrayList;
import java.util.List;

/** Bars with a name above and a value behind each, as long as the values. */
public class BarsView extends View {
    /** One bar. */
    static final class Bar {
        final String name;
        final double value;
        final String text;
        final boolean strong;

        Bar(String name, double value, String text, boolean strong) {
            this.name = name;
            this.value = value;
            this.text = text;
            this.strong = strong;
        }
    }

    private final TextPaint names = new TextPaint(Paint.ANTI_ALIAS_FLAG);
    private final TextPaint values = new TextPaint(Paint.ANTI_ALIAS_FLAG);
    private final Paint fill = new Paint(Paint.ANTI_ALIAS_FLAG);
    private final RectF box = new RectF();
    private final float thickness;
    private final float gap;
    private List<Bar> bars = new ArrayList<>();
    private double full = 1;

    public BarsView(Context context, AttributeSet attributes) {
        super(context, attributes);
        names.setColor(context.getColor(R.color.text_soft));
        names.setTextSize(size(TypedValue.COMPLEX_UNIT_SP, 14));
        values.setColor(context.getColor(R.color.text));
        values.setTextSize(size(TypedValue.COMPLEX_UNIT_SP, 15));
        thickness = size(TypedValue.COMPLEX_UNIT_DIP, 14);
        gap = size(TypedValue.COMPLEX_UNIT_DIP, 10);
    }

    private float size(int unit, float value) {
        return TypedValue.applyDimension(unit, value, getResources().getDisplayMetrics());
    }

    /** Shows bars; `most` is the value of a full bar, or 0 for the largest value. */
    void show(List<Bar> shown, double most) {
        bars = new ArrayList<>(shown);
        full = most;
        StringBuilder spoken = new StringBuilder();
        for (Bar bar : bars) {
            if (most <= 0) {
                full = Math.max(full, bar.value);
            }
            spoken.append(getResources().getString(R.string.bar_label, bar.name, bar.text));
            spoken.append(". ");
        }
        setContentDescription(spoken.toString().trim());
        requestLayout();
        invalidate();
    }

    private float row() {
        return names.getFontSpacing() + Math.max(thickness, values.getFontSpacing()) + gap;
    }

    @Override
    protected void onMeasure(int width, int height) {
        int wanted = (int) Math.ceil(Math.max(0, bars.size() * row() - gap));
        setMeasuredDimension(MeasureSpec.getSize(width), resolveSize(wanted, height));
    }

    @Override
    protected void onDraw(Canvas canvas) {
        float widest = 0;
        for (Bar bar : bars) {
            widest = Math.max(widest, values.measureText(bar.text));
        }
        float room = Math.max(0, getWidth() - widest - gap);
        float top = 0;
        for (Bar bar : bars) {
            CharSequence name =
                    TextUtils.ellipsize(bar.name, names, getWidth(), TextUtils.TruncateAt.END);
            canvas.drawText(name, 0, name.length(), 0, top - names.ascent(), names);
            float line = top + names.getFontSpacing();
            float height = Math.max(thickness, values.getFontSpacing());
            float length = full > 0 ? (float) (room * Math.min(1, bar.value / full)) : 0;
            float y = line + (height - thickness) / 2;
            if (bar.value > 0) {
                length = Math.max(length, thickness / 3);
                fill.setColor(
                        getContext().getColor(bar.strong ? R.color.accent : R.color.bar_other));
                box.set(0, y, length, y + thickness);
                float radius = Math.min(thickness / 3, length / 2);
                canvas.drawRoundRect(box, radius, radius, fill);
                length += gap;
            }
            float base = line + height / 2 - (values.ascent() + values.descent()) / 2;
            canvas.drawText(bar.text, length, base, values);
            top += row();
        }
    }
}
