// XLA's foreign function interface, as far as the bindings use it: the structures of its C
// interface and what they say. Major version 0, whose minor versions only append fields; each
// structure begins with its size. Declared here, because a build must not need jaxlib, whose header
// for it is xla/ffi/api/c_api.h.
#pragma once
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

namespace xentropy {
namespace xla {

constexpr int kMajor = 0;
constexpr int kEarlyMinor = 1;  // of jaxlib 0.5 to 0.7, whose frames do not carry it

enum { kMetadata = 1 };  // of extensions: XLA asks for the version of a handler
enum { kExecute = 3 };   // of stages
enum { kIsBuffer = 1 };  // of arguments and results
enum { kIsScalar = 3 };  // of attributes
enum Code { kInvalidArgument = 3, kResourceExhausted = 8, kOutOfRange = 11 };

// Types of elements, and of the attribute.
enum { kTypeS32 = 4, kTypeS64 = 5, kTypeF16 = 10, kTypeF32 = 11, kTypeF64 = 12, kTypeBF16 = 16 };

struct Extension {
  size_t size;
  int kind;
  Extension* next;
};

struct Version {
  size_t size;
  Extension* extensions;
  int major_version, minor_version;
};

struct Metadata {
  size_t size;
  Version version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct Error;

struct ErrorArguments {
  size_t size;
  Extension* extensions;
  const char* message;
  int code;
};

struct Api {
  size_t size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArguments*);
};

struct Buffer {
  size_t size;
  Extension* extensions;
  int type;
  void* data;
  int64_t rank;
  const int64_t* shape;
};

struct Buffers {
  size_t size;
  Extension* extensions;
  int64_t count;
  const int* kinds;
  Buffer* const* items;
};

struct Name {
  const char* start;
  size_t length;
};

struct Scalar {
  int type;
  const void* value;
};

struct Attributes {
  size_t size;
  Extension* extensions;
  int64_t count;
  const int* kinds;
  Name* const* names;
  Scalar* const* items;
};

struct Frame {
  size_t size;
  Extension* extensions;
  const Api* api;
  void* context;
  int stage;
  Buffers arguments;
  Buffers results;
  Attributes attributes;
};

static_assert(sizeof(void*) == 8, "the layout below is that of 64 bits");
static_assert(sizeof(Extension) == 24 && offsetof(MetadataExtension, metadata) == 24, "");
static_assert(sizeof(Version) == 24 && offsetof(Version, minor_version) == 20, "");
static_assert(offsetof(Metadata, version) == 8 && offsetof(Metadata, traits) == 32, "");
static_assert(offsetof(ErrorArguments, message) == 16 && offsetof(ErrorArguments, code) == 24, "");
static_assert(offsetof(Api, version) == 16 && offsetof(Api, create_error) == 48, "");
static_assert(offsetof(Buffer, data) == 24 && offsetof(Buffer, shape) == 40, "");
static_assert(sizeof(Buffer) == 48 && sizeof(Buffers) == 40 && sizeof(Attributes) == 48, "");
static_assert(offsetof(Buffers, count) == 16 && offsetof(Buffers, items) == 32, "");
static_assert(offsetof(Attributes, names) == 32 && offsetof(Attributes, items) == 40, "");
static_assert(sizeof(Scalar) == 16 && sizeof(Name) == 16, "");
static_assert(offsetof(Frame, stage) == 32 && offsetof(Frame, arguments) == 40, "");
static_assert(offsetof(Frame, results) == 80 && offsetof(Frame, attributes) == 120, "");
static_assert(sizeof(Frame) == 168, "");

// Answers XLA's question for the version of a handler, which it asks when the handler is
// registered; false if this is a call. The answer is any minor version of our major one, and no
// trait.
static inline bool answer_version(const Frame* frame) {
  for (Extension* extension = frame->extensions; extension; extension = extension->next) {
    if (extension->kind != kMetadata) continue;
    Metadata* m = reinterpret_cast<MetadataExtension*>(extension)->metadata;
    if (m->size >= offsetof(Metadata, traits) + sizeof(m->traits)) {
      m->version.major_version = kMajor;
      m->version.minor_version = frame->api ? frame->api->version.minor_version : kEarlyMinor;
      m->traits = 0;
    }
    return true;
  }
  return false;
}

// Why a call is refused.
struct Refusal {
  Code code;
  char text[512];
};

// Returns false.
static inline bool refuse(Refusal* why, Code code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  why->code = code;
  vsnprintf(why->text, sizeof(why->text), format, arguments);
  va_end(arguments);
  return false;
}

// The error of a call of the target `name`, for XLA to own. Each version of the interface has the
// function that makes it; a frame without any function has nobody to tell.
static inline Error* error_of(const Frame* frame, const char* name, const Refusal* why) {
  if (!frame->api || !frame->api->create_error) return nullptr;
  char message[640];
  snprintf(message, sizeof(message), "%s: %s", name, why->text);
  ErrorArguments arguments = {sizeof(arguments), nullptr, message, why->code};
  return frame->api->create_error(&arguments);
}

}  // namespace xla
}  // namespace xentropy
