package io.edgecompress.demo;

import android.content.Context;
import android.util.AttributeSet;
import android.widget.LinearLayout;

/** A column that stays readable on wide screens. */
public class Column extends LinearLayout {
    private static final int WIDEST_DP = 720;

    public Column(Context context, AttributeSet attributes) {
        super(context, attributes);
    }

    @Override
    protected void onMeasure(int width, int height) {
        int widest = Math.round(WIDEST_DP * getResources().getDisplayMetrics().density);
        if (MeasureSpec.getMode(width) != MeasureSpec.UNSPECIFIED
                && MeasureSpec.getSize(width) > widest) {
            width = MeasureSpec.makeMeasureSpec(widest, MeasureSpec.EXACTLY);
        }
        super.onMeasure(width, height);
    }
}
