package io.edgecompress.demo;

import android.content.Context;
import android.util.AttributeSet;
import android.view.View;
import android.widget.LinearLayout;

/** Views beside each other; below each other where that is too narrow, as with a large font. */
public class Row extends LinearLayout {
    private View filling;

    public Row(Context context, AttributeSet attributes) {
        super(context, attributes);
    }

    @Override
    protected void onFinishInflate() {
        super.onFinishInflate();
        for (int i = 0; i < getChildCount(); i++) {
            if (((LayoutParams) getChildAt(i).getLayoutParams()).weight > 0) {
                filling = getChildAt(i);
            }
        }
    }

    @Override
    protected void onMeasure(int width, int height) {
        int wanted = getPaddingLeft() + getPaddingRight();
        int gap = 0;
        int free = MeasureSpec.makeMeasureSpec(0, MeasureSpec.UNSPECIFIED);
        for (int i = 0; i < getChildCount(); i++) {
            View child = getChildAt(i);
            if (child.getVisibility() != GONE) {
                LayoutParams place = (LayoutParams) child.getLayoutParams();
                child.measure(free, free);
                wanted += gap + child.getMeasuredWidth() + place.leftMargin + place.rightMargin;
                gap = getDividerDrawable() == null ? 0 : getDividerDrawable().getIntrinsicWidth();
            }
        }
        boolean fits =
                MeasureSpec.getMode(width) == MeasureSpec.UNSPECIFIED
                        || wanted <= MeasureSpec.getSize(width);
        setOrientation(fits ? HORIZONTAL : VERTICAL);
        if (filling != null) {
            // It takes the rest of the line; alone it has the line.
            LayoutParams place = (LayoutParams) filling.getLayoutParams();
            place.width = fits ? 0 : LayoutParams.MATCH_PARENT;
            place.weight = fits ? 1 : 0;
        }
        super.onMeasure(width, height);
    }
}
