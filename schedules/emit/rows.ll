; Functions of kernels that run rows on a processor (schedules/emit/tvm_rows.py): what TVM's own
; text cannot say. They are inlined. TVM links the text to every function that asks for it, hence
; linkonce_odr.

; How far an address is from the start of a line of the caches, in bytes.
define linkonce_odr i32 @row_into_line(ptr %at) alwaysinline {
  %address = ptrtoint ptr %at to i64
  %low = and i64 %address, 63
  %into = trunc i64 %low to i32
  ret i32 %into
}

; Copies a line to memory without bringing it into the caches; %to starts a line.
define linkonce_odr void @row_store_line(ptr %to, ptr %from) alwaysinline {
  %line = load <16 x i32>, ptr %from, align 1
  store <16 x i32> %line, ptr %to, align 64, !nontemporal !0
  ret void
}

; Lines stored so are seen by other threads in the order of other stores from here on only.
define linkonce_odr void @row_fence() alwaysinline {
  fence seq_cst
  ret void
}

; The number, and the compiler does not know it.
define linkonce_odr i32 @row_unknown(i32 %number) alwaysinline {
  %same = call i32 asm "", "=r,0"(i32 %number)
  ret i32 %same
}

!0 = !{i32 1}
