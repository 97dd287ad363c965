// What a call of XLA has to be like: frame, attribute, arrays. Each function returns false if it is
// not, and says why; the words are those of _check/.
#pragma once
#include <string.h>

#include "kernels/driver/layout.h"
#include "xla_ffi.h"

namespace xentropy {
namespace xla {

// Is the frame a call with so many arguments and one result, of an interface that is known here?
static inline bool check_frame(const Frame* f, int64_t arguments, Refusal* why) {
  const int major = f->api ? f->api->version.major_version : -1;
  if (major != kMajor || f->api->size < sizeof(Api)) {
    return refuse(why, kInvalidArgument, "RuntimeError: version %d of XLA's interface", major);
  }
  if (f->size < sizeof(Frame) || f->arguments.size < sizeof(Buffers) ||
      f->results.size < sizeof(Buffers) || f->attributes.size < sizeof(Attributes)) {
    return refuse(why, kInvalidArgument,
                  "RuntimeError: XLA's call frame is smaller than that of its version 0.0");
  }
  if (f->stage != kExecute) {
    return refuse(why, kInvalidArgument, "RuntimeError: called at stage %d, not to execute",
                  f->stage);
  }
  if (f->arguments.count != arguments || f->results.count != 1) {
    return refuse(why, kInvalidArgument,
                  "TypeError: takes %lld arguments for 1 result, not %lld for %lld",
                  (long long)arguments, (long long)f->arguments.count, (long long)f->results.count);
  }
  return true;
}

// The attribute `axis`, an int64, which has to be the only one.
static inline bool take_axis(const Attributes& a, int64_t* axis, Refusal* why) {
  const bool known = a.count == 1 && a.kinds[0] == kIsScalar && a.names[0]->length == 4 &&
                     memcmp(a.names[0]->start, "axis", 4) == 0 && a.items[0]->type == kTypeS64;
  if (!known) return refuse(why, kInvalidArgument, "TypeError: takes one attribute, axis: int64");
  memcpy(axis, a.items[0]->value, sizeof(*axis));
  return true;
}

// A dense array in C order.
struct Array {
  char* data;
  int dtype;  // DType, or -1 if the kernels do not support it
  int type;   // the same as XLA's number
  int64_t rank;
  const int64_t* shape;
  size_t bytes;
};

static inline int dtype_of(int type) {
  switch (type) {
    case kTypeS32:
      return kI32;
    case kTypeF16:
      return kF16;
    case kTypeBF16:
      return kBF16;
    case kTypeF32:
      return kF32;
    case kTypeF64:
      return kF64;
    default:
      return -1;
  }
}

static inline size_t item_bytes(int dtype) {
  return dtype == kF64 ? 8 : dtype == kF16 || dtype == kBF16 ? 2 : 4;
}

// Argument or result number `i` as an array.
static inline bool take_array(const Buffers& all, int64_t i, Array* array, Refusal* why) {
  const Buffer* b = all.kinds[i] == kIsBuffer ? all.items[i] : nullptr;
  if (!b || b->size < sizeof(Buffer) || b->rank < 0 || (b->rank && !b->shape)) {
    return refuse(why, kInvalidArgument, "TypeError: argument or result %lld is no array",
                  (long long)i);
  }
  const int dtype = dtype_of(b->type);
  size_t bytes = item_bytes(dtype);
  for (int64_t d = 0; d < b->rank; ++d) {
    const int64_t length = b->shape[d];
    if (length < 0 || (length && bytes > size_t(PTRDIFF_MAX) / size_t(length))) {
      return refuse(why, kInvalidArgument, "ValueError: argument or result %lld has length %lld",
                    (long long)i, (long long)length);
    }
    bytes *= size_t(length);
  }
  if (bytes && !b->data) {
    return refuse(why, kInvalidArgument, "ValueError: argument or result %lld has no memory",
                  (long long)i);
  }
  *array = {static_cast<char*>(b->data), dtype, b->type, b->rank, b->shape, bytes};
  return true;
}

// Text that is cut off where it does not fit.
struct Text {
  char start[200];
  size_t used;
};

static inline void append(Text* text, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const size_t room = sizeof(text->start) - text->used;
  const int n = vsnprintf(text->start + text->used, room, format, arguments);
  va_end(arguments);
  text->used += n < 0 ? 0 : size_t(n) < room ? size_t(n) : room - 1;
}

// The shape of an array without dimension `without` (-1: of all), as Python writes it.
static inline Text shape_text(const Array& a, int64_t without) {
  Text text = {"", 0};
  int64_t shown = 0;
  append(&text, "(");
  for (int64_t d = 0; d < a.rank; ++d) {
    if (d != without) append(&text, shown++ ? ", %lld" : "%lld", (long long)a.shape[d]);
  }
  append(&text, shown == 1 ? ",)" : ")");
  return text;
}

// The place of element number `at` of an array in C order, as Python writes it.
static inline Text place_text(const Array& a, size_t at) {
  Text text = {"", 0};
  size_t inside = a.bytes / item_bytes(a.dtype);
  for (int64_t d = 0; d < a.rank; ++d) {
    inside /= size_t(a.shape[d]);
    append(&text, d ? ", %zu" : "[%zu", at / inside);
    at %= inside;
  }
  if (a.rank) append(&text, "]");
  return text;
}

// Has the array the shape of `like` without dimension `without` (-1: of all)?
static inline bool check_shape(const char* name, const Array& a, const Array& like, int64_t without,
                               Refusal* why) {
  bool same = a.rank == like.rank - (without >= 0);
  for (int64_t d = 0; same && d < a.rank; ++d) {
    same = a.shape[d] == like.shape[d + (without >= 0 && d >= without)];
  }
  if (same) return true;
  return refuse(why, kInvalidArgument, "ValueError: %s has shape %s, not %s", name,
                shape_text(a, -1).start, shape_text(like, without).start);
}

// Has the array one of the four floating types?
static inline bool check_float(const char* name, const Array& a, Refusal* why) {
  if (a.dtype >= kF16 && a.dtype <= kF64) return true;
  return refuse(why, kInvalidArgument,
                "TypeError: %s must be float16, bfloat16, float32 or float64, not XLA's type %d",
                name, a.type);
}

// Has the result the type that the kernels write?
static inline bool check_result(const Array& result, int dtype, Refusal* why) {
  if (result.dtype == dtype) return true;
  static const char* const names[] = {"float16", "bfloat16", "float32", "float64"};
  return refuse(why, kInvalidArgument, "TypeError: the result must be %s, not XLA's type %d",
                names[dtype], result.type);
}

// Makes `axis` a number >= 0: it has to be a dimension of the logits that has classes.
static inline bool check_axis(const Array& logits, int64_t* axis, Refusal* why) {
  if (*axis < -logits.rank || *axis >= logits.rank) {
    return refuse(why, kInvalidArgument,
                  "ValueError: axis = %lld is out of range for logits of shape %s",
                  (long long)*axis, shape_text(logits, -1).start);
  }
  *axis += *axis < 0 ? logits.rank : 0;
  if (logits.shape[*axis] > 0) return true;
  return refuse(why, kInvalidArgument,
                "ValueError: logits of shape %s has no classes along axis %lld",
                shape_text(logits, -1).start, (long long)*axis);
}

// May the result be written while the argument is read? Logits have room for their own gradient.
static inline bool check_overlap(const char* name, const Array& result, const Array& argument,
                                 bool in_place, Refusal* why) {
  if (in_place && result.data == argument.data) return true;
  if (result.data >= argument.data + argument.bytes ||
      argument.data >= result.data + result.bytes) {
    return true;
  }
  return refuse(why, kInvalidArgument, "ValueError: the result overlaps %s", name);
}

static inline bool refuse_label(const Array& target, size_t row, size_t classes, Refusal* why) {
  int32_t label;
  memcpy(&label, target.data + row * sizeof(label), sizeof(label));
  char hint[80] = "";  // as _hints.py has it
  if (label < 0) {
    snprintf(hint, sizeof(hint), "; ignore_index=%d leaves out the rows with this label",
             int(label));
  } else if (classes == 1) {
    snprintf(hint, sizeof(hint), "; two classes need two logits a row, such as 0 and x");
  } else if (size_t(label) == classes) {
    snprintf(hint, sizeof(hint), "; they are counted from 0");
  }
  return refuse(why, kOutOfRange, "IndexError: target%s = %d is out of range for %zu classes%s",
                place_text(target, row).start, int(label), classes, hint);
}

static inline bool refuse_memory(size_t bytes, Refusal* why) {
  return refuse(why, kResourceExhausted, "MemoryError: no memory for %zu bytes of scratch", bytes);
}

}  // namespace xla
}  // namespace xentropy
